"""Downloads from a hub on this machine: breaks are gone on after, refusals say what to do."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants

from palimpsest import fetching
from palimpsest.fetching import FLAT, PLAIN, Refused, fetch
from palimpsest.fingerprint import fingerprint
from palimpsest.methods.safety_checker import INFO
from palimpsest.sampling.load import checkpoint_folder
from palimpsest.weights import WHOLE, present
from tests.hub import COMMIT, Hub, running

REPO = "somebody/small-model"
LARGE = "unet/diffusion_pytorch_model.safetensors"
CHUNK = 1 << 16


@pytest.fixture
def hub(tmp_path, monkeypatch):
    content = np.random.default_rng(0).bytes(20 * CHUNK)
    files = {
        "model_index.json": b"{}",
        "unet/config.json": b'{"a": 1}',
        LARGE: content,
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "v1.safetensors": b"whole",
    }
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants, "HF_HUB_CACHE", str(tmp_path / "cache")
    )  # the library reads its environment once
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running(Hub(REPO, files, large=(LARGE,))) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        yield found


def fetched(revision=COMMIT, **named):
    said, waits = [], []
    place = fetch(REPO, revision, wait=waits.append, say=said.append, **named)
    return place, said, waits


def test_the_snapshot_holds_what_is_read_and_no_pickle(hub):
    place, _, waits = fetched()
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == {"model_index.json", "unet/config.json", LARGE}
    assert (place / LARGE).read_bytes() == hub.files[LARGE]
    assert waits == []
    assert checkpoint_folder(REPO, COMMIT, "model.path") == place
    assert present(REPO, COMMIT, place)
    assert fingerprint(REPO, COMMIT) == f"{REPO}@{COMMIT}"


def test_a_transfer_that_breaks_goes_on_where_it_broke(hub):
    hub.breaks = [5 * CHUNK, 3 * CHUNK, 2 * CHUNK]
    place, _, _ = fetched()
    firsts = [first for name, first, _ in hub.served if name == LARGE]
    assert firsts == sorted(firsts) and firsts[0] == 0 and firsts[-1] > 5 * CHUNK
    assert sum(sent for name, _, sent in hub.served if name == LARGE) <= len(hub.files[LARGE]) + 3 * CHUNK
    assert (place / LARGE).read_bytes() == hub.files[LARGE]


def test_a_later_process_goes_on_where_an_earlier_one_was_given_up(hub):
    hub.breaks = [8 * CHUNK, *[0] * 20]
    with pytest.raises(Refused, match="given up after 2 tries.*What came is kept"):
        fetched(tries=1)
    hub.breaks, hub.served = [], []
    place, said, _ = fetched()
    first = next(first for name, first, _ in hub.served if name == LARGE)
    assert first >= 7 * CHUNK
    assert any("going on at" in line for line in said)
    assert (place / LARGE).read_bytes() == hub.files[LARGE]


def test_a_busy_hub_is_asked_again_after_longer_and_longer_waits(hub):
    hub.failures = 3
    place, said, waits = fetched()
    assert place.is_dir()
    assert waits == [1.0, 2.0, 4.0]
    assert all("trying again" in line for line in said[:3])


def test_a_file_that_is_not_what_the_hub_states_is_fetched_again(hub):
    hub.spoiled = 1
    place, said, waits = fetched()
    assert (place / LARGE).read_bytes() == hub.files[LARGE]
    assert len(waits) == 1 and any("not what the hub states" in line for line in said)


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (
            (403, "GatedRepo"),
            ["is gated", "CreativeML", "hf auth login", "same command again", "set model.path"],
        ),
        ((401, "GatedRepo"), ["is gated", "accept the licence"]),
        ((401, "RepoNotFound"), ["does not exist on the hub, or is private", "hf auth login"]),
        ((404, "RepoNotFound"), ["does not exist on the hub"]),
        ((403, "Forbidden"), ["the hub refuses it (403)", "hf auth whoami"]),
    ],
)
def test_a_refusal_says_what_to_accept_and_what_to_do(hub, refusal, says):
    hub.refusal = refusal
    with pytest.raises(Refused) as caught:
        fetched(licence="CreativeML OpenRAIL-M", instead="a local folder (set model.path to it)")
    for part in says:
        assert part in str(caught.value)
    assert hub.served == []


def test_a_gated_model_may_be_listed_and_refused_at_its_files(hub):
    hub.refusal, hub.listed = (401, "GatedRepo"), True
    with pytest.raises(Refused, match="is gated"):
        fetched()


def test_a_revision_that_is_not_there_is_named(hub):
    with pytest.raises(Refused, match="has no revision 'v9'"):
        fetched("v9")


def test_a_branch_leads_to_its_commit(hub):
    place, _, _ = fetched("main")
    assert place.name == COMMIT
    assert present(REPO, "main", place) and present(REPO, None, place)


def test_a_repository_of_pickles_is_refused_with_the_way_out(hub):
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(Refused, match=r"no safetensors.*only pickles \(pytorch_model.bin"):
        fetched(patterns=FLAT)


def test_a_checkpoint_s_safety_checker_is_fetched_when_it_is_asked_for_and_alone(hub):
    checker = {
        "safety_checker/config.json": b"{}",
        "safety_checker/model.safetensors": b"weights",
        "safety_checker/pytorch_model.bin": b"pickle",
        "feature_extractor/preprocessor_config.json": b"{}",
    }
    hub.files |= checker
    stored = INFO.stored["checker"]
    place, _, _ = fetched(patterns=(*PLAIN, *stored))
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == {"model_index.json", "unet/config.json", *checker} - {"safety_checker/pytorch_model.bin"}
    assert present(REPO, COMMIT, place, stored) and not present(REPO, COMMIT, place, WHOLE)
    assert checkpoint_folder(REPO, COMMIT, "checker", *stored) == place

    fetched()
    assert present(REPO, COMMIT, place, stored) and present(REPO, COMMIT, place, WHOLE)


def test_a_checkpoint_that_was_fetched_without_its_safety_checker_lacks_it(hub):
    hub.files |= {"safety_checker/config.json": b"{}", "safety_checker/model.safetensors": b"weights"}
    place, _, _ = fetched()
    assert not (place / "safety_checker").exists()
    assert present(REPO, COMMIT, place, WHOLE) and not present(REPO, COMMIT, place, INFO.stored["checker"])


def test_offline_nothing_is_asked_for(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Refused, match=r"HF_HUB_OFFLINE.*copy that machine's hub cache to .*cache"):
        fetched()
    assert hub.served == [] and hub.token == ""


@pytest.mark.slow
def test_a_killed_download_is_gone_on_with(hub, tmp_path):
    """In a process of its own, killed while the hub still holds the line."""
    hub.breaks = [9 * CHUNK, *[0] * 50]
    code = f"from palimpsest.fetching import fetch; fetch({REPO!r}, {COMMIT!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ}, stdout=subprocess.PIPE)
    while not any(name == LARGE for name, _, _ in hub.served):
        pass
    process.kill()
    process.wait()
    hub.breaks, hub.served = [], []
    fetched()
    assert fetching.hub_cache().is_dir()
