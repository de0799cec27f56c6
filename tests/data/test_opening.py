"""The `data:` section: a path or a mixture, and what of it is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from outmodal.data.opening import open_data, shown_data
from outmodal.data.stream import StreamConfig
from outmodal.errors import UserError
from outmodal.launch.config import adapted, dump_config, load_config, parse_config
from tests.data.tiny import make_tiny

TWO: Any = [{"path": "a"}, {"path": "b"}]


def test_a_path_opens_one_data_set(tmp_path: Path) -> None:
    made = make_tiny(tmp_path / "d", 6, 1, ("pose",))
    cfg = StreamConfig(path=str(made.root))
    assert open_data(cfg).fingerprint() == made.fingerprint()
    assert shown_data(cfg) == str(made.root)
    assert shown_data(StreamConfig(mix=TWO)) == "a + b"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "c", "mix": TWO}, r"path \(c\) and mix exclude each other"),
        ({"mix": [{"path": "a"}, {"path": "a"}]}, "names a twice"),
        ({"mix": [{"path": "a", "proportion": 0}, {"path": "b", "proportion": 1}]}, "greater than"),
        ({"mix": [{"path": "a", "proportion": -1}]}, "greater than 0"),
        ({"mix": [{"path": "a", "weight": 0}]}, "greater than 0"),
        ({"mix": [{"path": "a", "proportion": 1}, {"path": "b"}]}, "b has none: give all"),
        ({"mix": [{"path": "a", "proportion": 1}], "temperature": 2}, "leave temperature"),
        ({"mix": TWO, "temperature": 0}, "greater than 0"),
    ],
)
def test_what_excludes_each_other_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StreamConfig(**keys)


def test_a_recipe_names_a_mixture(tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        "base: align\ndata:\n  temperature: 2\n  mix:\n"
        "    - {path: photos, weight: 3}\n    - {path: films, classes: {kitty: cat}}\n"
    )
    config = load_config(str(recipe), ["--data.batch", "64"])
    assert [source.path for source in config.data.mix] == ["photos", "films"]
    assert config.data.mix[1].classes == {"kitty": "cat"}
    assert (config.data.path, config.data.batch) == ("", 64)
    assert parse_config(dump_config(config), "config.yaml") == config
    with pytest.raises(UserError, match=r"photos.*no data set|no data set at photos"):
        open_data(config.data)


def test_mistakes_in_a_mixture_name_their_line() -> None:
    sources = [{"path": "photos", "proportion": 0}, {"path": "films", "wieght": 2}]
    with pytest.raises(UserError) as refused:
        adapted("align", {"data": {"mix": sources}}, "here")
    text = str(refused.value)
    assert "data.mix.0.proportion" in text
    assert "wieght" in text
