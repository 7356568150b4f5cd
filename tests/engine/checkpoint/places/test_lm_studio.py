"""LM Studio's folder of models: the pointer to it, and the names of models in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.checkpoint.places.lm_studio import in_lm_studio, model_folders, name_in_lm_studio


@pytest.mark.parametrize("place", [".lmstudio", ".cache/lm-studio", "moved"])
def test_a_model_is_found_in_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if place == "moved":
        (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / place}\n")
    folder = tmp_path / place / "models" / "ORG" / "NAME"
    folder.mkdir(parents=True)
    assert in_lm_studio("ORG/NAME") == folder and name_in_lm_studio(folder) == "ORG/NAME"
    assert in_lm_studio("ORG/OTHER") is None and name_in_lm_studio(tmp_path / "ORG" / "NAME") is None


def test_a_damaged_pointer_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for content in (b"", b"\n", b"\xff\xfe", b"\x00"):
        (tmp_path / ".lmstudio-home-pointer").write_bytes(content)
        assert tmp_path / ".lmstudio" / "models" in model_folders() and in_lm_studio("ORG/NAME") is None
