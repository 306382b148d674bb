"""What the hub says to whoever may not, and exports sent there: against a hub on this machine."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_hub import Hub, fake_hub
from medreason.config import ConfigError, ExportConfig, ExportFormat, ModelConfig, Precision, RunFailed
from medreason.core.hub import check_push, hub_name, push
from medreason.export import write
from medreason.export.model_card import model_card
from medreason.inference.target import find_answerer
from medreason.models.checks import check_hub_model
from support import TINY

GATED = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub(monkeypatch) as made:
        made.models[GATED] = {"private": False, "gated": "manual"}
        made.models["open/model"] = {"private": False, "gated": False}
        writes = {"auth": {"accessToken": {"role": "write"}}}
        made.tokens["granted"] = {"name": "ann", "orgs": [{"name": "clinic"}], **writes}
        made.tokens["stranger"] = {"name": "bob", "orgs": [], **writes}
        made.tokens["reader"] = {"name": "ann", "orgs": [], "auth": {"accessToken": {"role": "read"}}}
        made.granted = {"granted"}
        yield made


def refused(task: Any, *given: Any) -> str:
    with pytest.raises(ConfigError) as error:
        task(*given)
    assert "\n" not in str(error.value)
    return str(error.value)


def of_hub(path: str) -> ModelConfig:
    return replace(TINY, path=path, precision=Precision.nf4)


@pytest.mark.parametrize("token", [None, "stranger"])
def test_a_gated_model_says_what_to_do_in_one_line_wherever_it_is_asked_for(
    token: str | None, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    for task, given in ((check_hub_model, of_hub(GATED)), (find_answerer, GATED)):  # training, export; evaluate, chat
        said = refused(task, given)
        assert said.startswith(f"{GATED} is gated: accept its terms at http://127.0.0.1:") and "hf auth login" in said


def test_who_may_read_a_gated_model_is_let_through_and_anyone_to_an_open_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_hub_model(of_hub("open/model"))
    monkeypatch.setenv("HF_TOKEN", "granted")
    check_hub_model(of_hub(GATED))


def test_a_private_or_missing_model_and_a_token_that_is_none_say_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "misspelt, or private (then hf auth login" in refused(check_hub_model, of_hub("ann/secret"))
    monkeypatch.setenv("HF_TOKEN", "granted")
    assert "neither a folder here nor to be had from the hub" in refused(check_hub_model, of_hub("ann/secret"))
    monkeypatch.setenv("HF_TOKEN", "expired")
    assert "does not take the token here for open/model: hf auth login" in refused(
        check_hub_model, of_hub("open/model")
    )


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (None, "ann/model", "push=ann/model: no token of the hub here: hf auth login"),
        ("expired", "ann/model", "does not take the token here"),
        ("reader", "ann/model", "the token here may only read: hf auth login"),
        ("granted", "bob/model", "ann may write to ann, clinic; take one as OWNER"),
        ("granted", "model", "push must be OWNER/NAME"),
        ("granted", "ann/a b", "push must be OWNER/NAME"),
        ("granted", "ann/a--b", "push must be OWNER/NAME"),
        ("granted", "ann/shown", "push=ann/shown: is public on the hub; say public=true"),
    ],
)
def test_what_could_not_be_pushed_is_one_line_before_anything_slow(
    token: str | None, name: str, said: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["ann/shown"] = {"private": False, "gated": False}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert said in refused(check_push, name, False)
    assert not any("create" in one for one in hub.asked), "nothing is made there before there is something to send"


def test_without_a_network_a_push_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_HUB_OFFLINE is set" in refused(check_push, "ann/model", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "granted")
    assert "push=ann/model: the hub does not answer (" in refused(check_push, "ann/model", False)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    card = model_card(name="run", kind="adapter", config={"model": {"path": str(tmp_path)}}, record={}, corpus={},
                      tokens=None, parity=[])  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    return folder


@pytest.mark.parametrize("public", [False, True])
def test_what_arrives_is_the_folder_private_unless_said_otherwise(
    public: bool, hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "granted")
    for name in ("ann/model", "clinic/model"):
        for _ in range(2):  # again, into the one that is there
            check_push(name, public)
            assert push(exported, name, public).endswith(f"/{name}")
        assert hub.models[name]["private"] is not public
        assert hub.files[name] == {file.name: file.read_bytes() for file in exported.iterdir()}


def test_a_hub_that_takes_nothing_leaves_the_export_and_the_command_that_tries_again(
    hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "granted")
    hub.full = True
    with pytest.raises(RunFailed) as failed:
        push(exported, "ann/model", False)
    assert "\n" not in str(failed.value)
    assert str(failed.value).endswith(f"the export is whole: hf upload ann/model {exported}")


@pytest.mark.parametrize("fails", [False, True])
def test_an_export_is_pushed_after_it_has_proved_itself_and_only_then(
    fails: bool, hub: Hub, taught_run: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "granted")
    done: list[str] = []

    def written(*_: Any, **__: Any) -> None:
        assert "GET /api/whoami-v2" in hub.asked and "ann/model" not in hub.models, "asked first, made last"
        done.append("written")
        if fails:
            raise RunFailed("the export does not answer as the adapter does")

    monkeypatch.setattr(write, "write_export", written)
    asked = ExportConfig(str(taught_run), ExportFormat.adapter, None, str(exported), 1, 1, None, "ann/model", False)
    if fails:
        with pytest.raises(RunFailed, match="does not answer"):
            write.export(asked)
        assert hub.files == {}
    else:
        write.export(asked)
        assert set(hub.files["ann/model"]) == {"README.md", "adapter_model.safetensors"}
    assert done == ["written"]


def test_a_name_on_the_hub_is_no_folder_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert hub_name("a/b")
    assert not any(map(hub_name, ("runs/a", "/a/b", "a", "a/b/c", "embedded:tiny")))
