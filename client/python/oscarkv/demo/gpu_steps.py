"""The demo with the model and the workers' KV on a GPU: the same sharing, then decode steps."""

import oscarkv

from . import decode_steps, report, text
from .steps import Demo, machine
from .torch_model import TorchModel, require_torch, torch


class GpuDemo(Demo):
    _device = "cuda"
    _model_class = TorchModel
    _sets = ("oscarkv",)
    _server_flags = ("--gpu-capacity", "256MiB", "--gpu-required")

    def run(self):
        require_torch(self._device)
        return super().run()

    def _tell(self, figures, sets, page):
        console = self._console
        with console.step("e", "what was saved, and what a decode step takes"):
            report.print_sharing(console, figures)
            console.line()
            with console.progress("timing decode steps", decode_steps.STEPS) as progress:
                steps = self._decode_steps(oscarkv.TransformSet.load(str(sets["oscarkv"])), progress)
            report.print_decode_steps(console, self._config.name, steps)
        with console.step("f", "the metrics page, filtered"):
            report.print_metrics(console, page)
        return {"decode_steps": steps, "model": self._config.name,
                "machine": f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {machine()}"}

    def _decode_steps(self, transforms, progress):
        count = self._arguments.step_tokens
        [tokens] = text.token_windows(self._tokenizer, self._evaluation_text, count, 1)
        model, setting = self._model, self._setting
        return {"model": decode_steps.model_steps(self._loaded, model, tokens, setting, transforms,
                                                  progress),
                "qwen3_8b_attention": decode_steps.qwen3_steps(setting, model.device, progress)}
