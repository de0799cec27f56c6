"""Tiny transformers folders as a hub has them: random weights, real preprocessing files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from tests.data.tiny import RATE, WORDS

TRUNK: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "a", "thing", "number", *WORDS, *"0123456789"]


def save(model: Any, folder: Path) -> Path:
    """Store a model whose biases are not all zero, so that nothing cancels."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, length: int | None, names: list[str] | None = None) -> None:
    """A word-level tokenizer that puts <s> before and </s> behind."""
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    extra: dict[str, Any] = {} if length is None else {"model_max_length": length}
    if names is not None:
        extra["model_input_names"] = names
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **extra,
    ).save_pretrained(folder)


def save_image_processor(folder: Path, kind: str, channels: int = 3) -> None:
    """Settings that resize to 16 x 16."""
    content = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": 16, "width": 16},
        "do_normalize": True,
        "image_mean": [0.5] * channels,
        "image_std": [0.25] * channels,
        "do_center_crop": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def clip(folder: Path, projection: int = 6) -> Path:
    config = CLIPConfig(
        text_config={
            **TRUNK,
            "vocab_size": len(VOCABULARY),
            "max_position_embeddings": 12,
            "eos_token_id": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
        vision_config={**TRUNK, "image_size": 16, "patch_size": 8},
        projection_dim=projection,
    )
    save(CLIPModel(config), folder)
    save_image_processor(folder, "CLIPImageProcessor")
    save_tokenizer(folder, 12)
    return folder


def siglip(folder: Path) -> Path:
    config = SiglipConfig(
        text_config={
            **TRUNK,
            "vocab_size": len(VOCABULARY),
            "max_position_embeddings": 9,
            "pad_token_id": 1,
            "projection_size": 16,
        },
        vision_config={**TRUNK, "image_size": 16, "patch_size": 8},
    )
    save(SiglipModel(config), folder)
    save_image_processor(folder, "SiglipImageProcessor")
    save_tokenizer(folder, 9, ["input_ids"])
    return folder


def clap(folder: Path) -> Path:
    config = ClapConfig(
        projection_dim=6,
        text_config={**TRUNK, "vocab_size": len(VOCABULARY), "max_position_embeddings": 20},
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "window_size": 2,
            "num_hidden_layers": 2,
        },
    )
    save(ClapModel(config), folder)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=2 * RATE,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=RATE,
        truncation="rand_trunc",
    ).save_pretrained(folder)
    save_tokenizer(folder, 16)
    return folder


def bert(folder: Path, pooler: bool = True) -> Path:
    config = BertConfig(**TRUNK, vocab_size=len(VOCABULARY), max_position_embeddings=20)
    save(BertModel(config) if pooler else BertForMaskedLM(config), folder)
    save_tokenizer(folder, 16)
    return folder


def roberta(folder: Path) -> Path:
    config = RobertaConfig(
        **TRUNK, vocab_size=len(VOCABULARY), max_position_embeddings=14, pad_token_id=1
    )
    save(RobertaModel(config), folder)
    save_tokenizer(folder, None)
    return folder


def wav2vec2(folder: Path) -> Path:
    config = Wav2Vec2Config(
        **TRUNK,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    save(Wav2Vec2Model(config), folder)
    Wav2Vec2FeatureExtractor(sampling_rate=2 * RATE).save_pretrained(folder)
    return folder


def vit(folder: Path, pooler: bool = True, channels: int = 3) -> Path:
    config = ViTConfig(**TRUNK, image_size=16, patch_size=8, num_channels=channels)
    save(ViTModel(config) if pooler else ViTForImageClassification(config), folder)
    save_image_processor(folder, "ViTImageProcessor", channels)
    return folder


def resnet(folder: Path) -> Path:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    save(ResNetModel(config), folder)
    save_image_processor(folder, "ConvNextImageProcessor")
    content = json.loads((folder / "preprocessor_config.json").read_text())
    content |= {"size": {"shortest_edge": 16}, "crop_pct": 0.875}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder
