"""What gpu_model_kv reads: K and V of the demo's model over text, and the transform set calibrated for it.

    model_kv.py --build-dir build/cuda --out FOLDER [--tokens N] [--every N]

Writes FOLDER/kv.safetensors (k and v, BF16 [layers, tokens, KV heads, head dim]) and FOLDER/transform.safetensors, of
every third layer by default: a few MiB, to be carried to the machine that has the GPU. The set is calibrated on other
text than the rows are of. Needs `oscarkv` and the Python package in the build directory.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

_CALIBRATION_TOKENS, _WINDOW = 4096, 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, default=256, help="of K and V")
    parser.add_argument("--every", type=int, default=3, help="take every Nth layer")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.build_dir / "python"), str(pathlib.Path(__file__).resolve().parents[1] / "python")]
    import tensor_files
    from oscarkv.demo import dump, gguf_weights, text
    from oscarkv.demo.model import Model
    from oscarkv.demo.tokenizer import Tokenizer

    loaded = gguf_weights.load_gguf(gguf_weights.default_model_path())
    model, tokenizer = Model(loaded), Tokenizer(loaded.vocabulary)
    calibration_text, evaluation_text = text.prose()
    layers = range(0, loaded.config.layers, arguments.every)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        dump.dump_qkv(model, text.token_windows(tokenizer, calibration_text, _WINDOW, _CALIBRATION_TOKENS // _WINDOW),
                      folder / "calibration")
        dump.dump_qkv(model, text.token_windows(tokenizer, evaluation_text, arguments.tokens, 1), folder / "rows")
        chosen = folder / "chosen"
        chosen.mkdir()
        for number, layer in enumerate(layers):
            (folder / f"calibration/layer_{layer:03d}.safetensors").rename(chosen / f"layer_{number:03d}.safetensors")
        subprocess.run([arguments.build_dir / "bin/oscarkv", "calibrate", chosen, "-o",
                        arguments.out / "transform.safetensors"], check=True, stdout=sys.stderr)
        rows = [tensor_files.read(folder / f"rows/layer_{layer:03d}.safetensors")[0] for layer in layers]
        tensor_files.write(arguments.out / "kv.safetensors",
                           {side: ("BF16", np.stack([of_layer[side] for of_layer in rows])) for side in ("k", "v")})


if __name__ == "__main__":
    main()
