"""Reads the tensors of a .pt file without executing it.

Such a file is a zip archive of a pickle and raw tensors, and a pickle is a program. A small interpreter here knows the
instructions that dicts of tensors are made of and the one call they need (put a tensor together), and refuses
everything else. Neither torch nor the pickle module takes part. Memory is bounded by the size of the file.
"""

import math
import os
import pickletools
import struct
import zipfile

import numpy as np

PICKLE_BYTES_MAX = 1 << 20
ENTRIES_MAX = 65536

# What may be named in the pickle, and what stands for it.
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bf16"}
_GLOBALS = {("torch", name): dtype for name, dtype in _STORAGES.items()}
_REBUILD, _ORDERED_DICT = object(), object()
_GLOBALS["torch._utils", "_rebuild_tensor_v2"] = _REBUILD
_GLOBALS["collections", "OrderedDict"] = _ORDERED_DICT


class Refused(Exception):
    """The file is damaged, hostile or not of this kind; the message says why."""


def bounded(value, what, most=1 << 40):
    """`value` when it is a number within bounds. Nothing else is printed: nested tuples can be exponentially long."""
    if type(value) is not int:
        raise Refused(f"{what} must be a number, found a {type(value).__name__}")
    if not 0 <= value <= most:
        raise Refused(f"{what} must be at most {most} and not negative, found {str(value):.40}")
    return value


_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, RuntimeError, ValueError, struct.error)


class Archive:
    """The zip around the tensors. Entries must be stored as they are, so that none is larger than the file."""

    def __init__(self, path):
        size = os.path.getsize(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_ERRORS:
            raise Refused("not a zip archive: save it again with a current torch.save") from None
        entries = self._zip.infolist()
        if len(entries) > ENTRIES_MAX:
            raise Refused(f"{len(entries)} entries, at most {ENTRIES_MAX} are accepted")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise Refused(f"entry {entry.filename!r:.80} is compressed or encrypted; torch.save stores plainly")
        # Overlapping entries would multiply what little the file holds.
        if sum(entry.file_size for entry in entries) > size:
            raise Refused("the entries claim more bytes than the file has")
        pickles = [entry for entry in entries if entry.filename.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise Refused(f"expected one data.pkl, found {len(pickles)}")
        self._pickle = pickles[0]
        self._folder = pickles[0].filename[:-len("data.pkl")]
        self._entries = {entry.filename: entry for entry in entries}
        order = self._entries.get(self._folder + "byteorder")
        if order is not None and self._read(order) != b"little":
            raise Refused("the tensors are not little-endian")

    def _read(self, entry):
        try:
            return self._zip.read(entry)
        except _ZIP_ERRORS as error:
            raise Refused(f"entry {entry.filename!r:.80}: {error}") from None

    def pickle(self):
        if self._pickle.file_size > PICKLE_BYTES_MAX:
            raise Refused(f"data.pkl has {self._pickle.file_size} bytes, at most {PICKLE_BYTES_MAX} are accepted")
        return self._read(self._pickle)

    def storage(self, key, dtype, elements):
        """The raw tensor `key` as fp32 or fp64 elements."""
        entry = self._entries.get(f"{self._folder}data/{key}")
        if entry is None:
            raise Refused(f"tensor data {key!r:.40} is not in the archive")
        width = 2 if dtype == "bf16" else np.dtype(dtype).itemsize
        if entry.file_size != elements * width:
            raise Refused(f"tensor data {key!r:.40}: {elements} elements need {elements * width} bytes, found "
                                f"{entry.file_size}")
        data = self._read(entry)
        if dtype == "bf16":
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(data, dtype)


class _Storage:
    def __init__(self, elements):
        self.elements = elements


class Unpickler:
    """Plays the instructions of one pickle: constants, tuples, lists, dicts and tensors."""

    _CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
    _VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    _MARK = object()

    def __init__(self, archive):
        self._archive = archive
        self._stack, self._memo, self._storages = [], {}, {}

    def load(self):
        try:
            for opcode, argument, _ in pickletools.genops(self._archive.pickle()):
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument)
        except (IndexError, KeyError, ValueError, UnicodeDecodeError) as error:
            raise Refused(f"the pickle is damaged: {error}") from None
        raise Refused("the pickle is damaged: it does not end")

    def _step(self, name, argument):
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            pass
        elif name in self._VALUES:
            stack.append(argument)
        elif name in self._CONSTANTS:
            stack.append(self._CONSTANTS[name])
        elif name == "MARK":
            stack.append(self._MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(reversed([self._pop() for _ in range(int(name[-1]))])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._pop_to_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._pop_to_mark()
            self._set_items(items)
        elif name == "GLOBAL":
            stack.append(self._global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            member, module = self._pop(), self._pop()
            stack.append(self._global(module, member))
        elif name == "BINPERSID":
            stack.append(self._persistent(self._pop()))
        elif name == "REDUCE":
            arguments, function = self._pop(), self._pop()
            stack.append(self._call(function, arguments))
        else:
            raise Refused(f"the pickle uses {name}, which rotation files do not need")

    def _pop(self):
        value = self._stack.pop()
        if value is self._MARK:
            raise ValueError("a mark where a value was expected")
        return value

    def _pop_to_mark(self):
        items = []
        while (value := self._stack.pop()) is not self._MARK:
            items.append(value)
        return items[::-1]

    def _top(self, kind):
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"a {kind.__name__} was expected")
        return self._stack[-1]

    def _set_items(self, items):
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples as keys would take exponential time to hash.
            if type(key) not in (str, int):
                raise ValueError("a key that is neither text nor number")
            target[key] = value

    @staticmethod
    def _global(module, name):
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global that is not named by text")
        if (module, name) not in _GLOBALS:
            raise Refused(f"the pickle calls for {module:.60}.{name:.60}, which is not allowed")
        return _GLOBALS[module, name]

    def _persistent(self, name):
        if not (isinstance(name, tuple) and len(name) == 5 and name[0] == "storage" and isinstance(name[2], str)
                and isinstance(name[1], str) and name[1] in _STORAGES.values()):
            raise ValueError("a persistent id that is no tensor storage")
        _, dtype, key, _, elements = name
        if key not in self._storages:
            self._storages[key] = _Storage(self._archive.storage(key, dtype, bounded(elements, "a storage's size")))
        return self._storages[key]

    @staticmethod
    def _call(function, arguments):
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are no tuple")
        if function is _ORDERED_DICT and not arguments:
            return {}
        if function is not _REBUILD or len(arguments) < 4:
            raise ValueError("a call of something else than the tensor's constructor")
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise ValueError("a tensor made of something else than a storage")
        if len(shape) != len(strides) or len(shape) > 4:
            raise ValueError("a tensor of more dimensions than rotations have")
        for value in (offset, *shape, *strides):
            bounded(value, "a tensor's extent")
        elements = storage.elements
        count = math.prod(shape)
        last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides))
        if count > len(elements) or (count > 0 and last >= len(elements)):
            raise Refused(f"a tensor {list(shape)} lies outside its storage of {len(elements)} elements")
        if count == 0:
            return np.zeros(shape, elements.dtype)
        return np.lib.stride_tricks.as_strided(elements[offset:], shape,
                                               [stride * elements.itemsize for stride in strides], writeable=False)


def load(path):
    """The object in the file: dicts, lists, tuples, texts, numbers, and tensors as arrays (those of bf16 in fp32).

    Raises Refused, or OSError when the file cannot be opened.
    """
    return Unpickler(Archive(path)).load()
