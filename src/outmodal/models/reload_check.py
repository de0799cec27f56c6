"""Reload an export in a fresh process with plain transformers, and compare.

As a program (`python reload_check.py FOLDER`) this file imports nothing of outmodal, and makes it
impossible to import: what it proves holds for people who have torch, transformers and safetensors
only. It prints one JSON line with the largest absolute differences.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def reload_check(folder: Path | str, python: str = sys.executable) -> float:
    """Return the largest difference of representations, embeddings and logits.

    Args:
        folder: An export whose backbone transformers has.
        python: Interpreter of the fresh process.

    Raises:
        UserError: transformers does not have this architecture.
        RuntimeError: The process failed; the message has the end of its standard error.
    """
    from outmodal.errors import UserError
    from outmodal.models.export_folder import read_info

    info = read_info(Path(folder))
    if info.forward is None:
        raise UserError(
            f"{folder}: transformers has no '{info.learner.name}', only outmodal loads this "
            "export: choose another learner for an encoder that AutoModel loads"
        )
    done = subprocess.run(
        [python, "-P", str(Path(__file__).resolve()), str(Path(folder).resolve())],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"reloading {folder} failed: {done.stderr.strip()[-2000:]}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    return float(report["max_abs_difference"])


def compare(folder: Path) -> dict[str, float]:
    """Output name -> largest absolute difference from what check.safetensors says."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel

    info = json.loads((folder / "outmodal.json").read_text(encoding="utf-8"))
    check = load_file(folder / "check.safetensors")
    backbone = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    with torch.no_grad():
        found = {"repr": represent(backbone, check["inputs"], info)}
        found["embedding"] = embed(found["repr"], folder, info)
        if info["classifier_norm"] is not None:
            found["logits"] = classify(found["embedding"], folder, info)
    unit = torch.nn.functional.normalize(found["embedding"], dim=-1, eps=1e-6)
    found["embedding_unit"] = unit
    return {name: float((value - check[name]).abs().max()) for name, value in found.items()}


def represent(backbone: Any, x: Any, info: dict[str, Any]) -> Any:
    """r [B, d_r] from inputs x, pooled as the record says."""
    arguments = {info["forward"]["argument"]: x}
    mask = None
    if info["forward"]["pad_token"] is not None:
        mask = (x != info["forward"]["pad_token"]).long()
        mask[:, 0] = 1
        arguments["attention_mask"] = mask
    out = backbone(**arguments)
    if info["pool"] == "pooler":
        return out.pooler_output.flatten(1)
    hidden = out.last_hidden_state
    if info["pool"] == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(1)
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def embed(r: Any, folder: Path, info: dict[str, Any]) -> Any:
    """e [B, d] from r: nothing, one linear layer, with LayerNorm behind it, two with LayerNorm and
    GELU between, or three with ReLU between."""
    from safetensors.torch import load_file
    from torch.nn import functional as F

    if info["head"] is None:
        return r
    w = load_file(folder / "head.safetensors")
    e = F.linear(r, w["layers.0.weight"], w["layers.0.bias"])
    if info["head"]["kind"] == "linear":
        return e
    if info["head"]["kind"] == "linear_ln":
        return F.layer_norm(e, e.shape[-1:], w["layers.1.weight"], w["layers.1.bias"])
    if info["head"]["kind"] == "mlp3":
        e = F.linear(F.relu(e), w["layers.2.weight"], w["layers.2.bias"])
        return F.linear(F.relu(e), w["layers.4.weight"], w["layers.4.bias"])
    e = F.layer_norm(e, e.shape[-1:], w["layers.1.weight"], w["layers.1.bias"])
    return F.linear(F.gelu(e), w["layers.3.weight"], w["layers.3.bias"])


def classify(e: Any, folder: Path, info: dict[str, Any]) -> Any:
    """Logits [B, C] from e, normalised as the record says."""
    from safetensors.torch import load_file
    from torch.nn import functional as F

    if info["classifier_norm"] != "none":
        e = F.normalize(e, dim=-1, eps=1e-6)
    if info["classifier_norm"] == "l2_sqrtd":
        e = e * e.shape[-1] ** 0.5
    w = load_file(folder / "classifier.safetensors")
    return F.linear(e, w["weight"], w["bias"])


def main(folder: str) -> None:
    """Compare, and print the JSON line."""
    sys.modules["outmodal"] = None  # type: ignore[assignment]  # importing it now fails
    differences = compare(Path(folder))
    loaded = [name for name in sys.modules if name.startswith("outmodal.")]
    assert not loaded, f"outmodal was imported: {loaded}"
    # NaN compares with nothing, so it is passed on as it is
    values = list(differences.values())
    worst = max(values) if all(v == v for v in values) else float("nan")
    sys.stdout.write(json.dumps({"max_abs_difference": worst, "differences": differences}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
