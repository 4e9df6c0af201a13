"""Models on a hub: a real server on loopback, the real client in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from foundation import hub
from models.heads import FactoredHead
from pipelines import checkpoint
from pipelines.actions import DOOM
from pipelines.remote import FILES
from pipelines.schema import DataError
from tests.foundation.hub_client import Client
from tests.foundation.hub_server import TOKEN, Hub

NET = {"_target_": "models.heads.FactoredHead", "width": 64, "n_keys": 6, "n_bins": 15}


def head(folder, seed):
    torch.manual_seed(seed)
    extras = {"actions": DOOM, "size": (64, 80), "fps": 17.5}
    tables = {"Data": {"hours": 1.25, "source videos": 3}, "Measured": {"loss|x": 0.5}}
    return hub.save(folder, FactoredHead(64, 6, 15), NET, extras, "A head.", tables, "head")


def files(folder):
    return {name: (Path(folder) / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def server():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(server, home):
    with Client(HF_ENDPOINT=server.url, HF_HOME=str(home)) as client:
        yield client


@pytest.fixture(scope="module")
def offline(server, home):
    with Client(HF_ENDPOINT=server.url, HF_HOME=str(home), HF_HUB_OFFLINE="1") as client:
        yield client


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return head(tmp_path_factory.mktemp("one") / "model", 1)


def push(server, home, *overrides, token=TOKEN):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "foundation.push", *overrides]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)


def test_what_is_pushed_is_loaded_and_a_revision_stays(server, home, client, offline, model, tmp_path):
    run = head(tmp_path / "run" / "model", 1).parent  # a run directory pushes the model in it, and nothing else
    (run / "last.ckpt").write_bytes(b"x")
    done = push(server, home, f"model={run}", "repo=ann/head", f"run.dir={tmp_path / 'a'}")
    assert done.returncode == 0, done.stderr
    first = server.repos["ann/head"]["refs"]["main"]
    assert f"ann/head@{first}" in done.stdout
    assert set(server.repos["ann/head"]["commits"][first]) == {*FILES, ".gitattributes"}
    loaded = client.load("ann/head")
    assert loaded == {"sha256": checkpoint.load(model).sha256, "origin": f"ann/head@{first}"}

    server.commit("ann/head", files(head(tmp_path / "two", 2)))
    second = client.load("ann/head")
    assert second["sha256"] == checkpoint.load(tmp_path / "two").sha256 != loaded["sha256"]
    assert client.load(f"ann/head@{first}") == client.load(f"hf://ann/head@{first}") == loaded

    server.requests.clear()
    assert offline.load("ann/head") == second
    assert offline.load(f"ann/head@{first}") == loaded
    assert server.requests == []


def test_a_branch_is_made_and_a_wrong_token_is_told(server, home, client, model, tmp_path):
    server.commit("ann/branches", {"notes.txt": b"x"})
    places = f"model={model}", "repo=ann/branches", f"run.dir={tmp_path}"
    done = push(server, home, *places, "revision=small")
    assert done.returncode == 0, done.stderr
    assert client.load("ann/branches@small")["sha256"] == checkpoint.load(model).sha256
    with pytest.raises(DataError, match=r"ann/branches@main has no config.yaml and no model.safetensors"):
        client.load("ann/branches")
    done = push(server, home, *places, token="hf_wrong")
    assert done.returncode == 2
    assert "HF_TOKEN" in done.stderr and "Traceback" not in done.stderr


IDM = {
    "_target_": "models.inverse_dynamics.InverseDynamics", "height": 32, "width": 40, "n_keys": 6, "n_bins": 15,
    "window": 8, "channels": [4, 4], "dim": 16, "layers": 1, "heads": 2, "dropout": 0.0,
}  # fmt: skip
POLICY = {
    "_target_": "models.video_policy.VideoPolicy", "height": 16, "width": 20, "n_buttons": 4, "n_camera": 9,
    "camera_on": [True] * 4, "camera_null": 4, "context": 4, "channels": [4], "dim": 8, "layers": 1, "heads": 2,
}  # fmt: skip


def test_every_command_takes_a_name(server, client, tmp_path):
    for name, net in (("idm", IDM), ("policy", POLICY)):
        extras = {"actions": DOOM, "size": (net["height"], net["width"]), "fps": 17.5}
        server.commit(f"ann/{name}", files(hub.save(tmp_path / name, checkpoint.build(net), net, extras, "", {}, name)))
        expected = {"sha256": checkpoint.load(tmp_path / name).sha256}
        expected["origin"] = f"ann/{name}@{server.repos[f'ann/{name}']['refs']['main']}"
        for by in ("init", {"idm": "label", "policy": "policy"}[name]):
            assert client.load(f"ann/{name}", by) == expected
    with pytest.raises(DataError, match="which does not act: give a policy"):
        client.load("ann/idm", "policy")
    with pytest.raises(DataError, match="ann/policy is no labeller"):
        client.load("ann/policy", "label")


def test_a_language_model_comes_without_what_else_lies_there(server, client, offline, tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(**size, vocab_size=20))
    net.save_pretrained(tmp_path)
    others = dict.fromkeys(("code.py", "pytorch_model.bin", "consolidated.safetensors"), b"raise SystemExit")
    kept = {name: (tmp_path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    oid = server.commit("ann/llama", {**kept, **others})
    server.requests.clear()
    found = client.load(f"ann/llama@{oid}", "language")
    decoder = {name: value for name, value in net.model.state_dict().items() if not name.startswith("embed_tokens")}
    assert found["origin"] == f"ann/llama@{oid}"
    assert found["sha256"] == pytest.approx(sum(float(value.sum()) for value in decoder.values()), abs=1e-3)
    assert not [path for _, path in server.requests if any(name in path for name in others)]
    assert offline.load(f"ann/llama@{oid}", "language") == found
    with pytest.raises(DataError, match=r"ann/absent@main .*check the name"):
        client.load("ann/absent", "language")


def test_a_cut_download_goes_on_where_it_stopped(server, client, model):
    server.commit("ann/cut", files(model))
    server.trouble["model.safetensors"] = ["cut"]
    server.requests.clear()
    assert client.load("ann/cut")["sha256"] == checkpoint.load(model).sha256
    assert sum(method == "GET" and "/lfs/" in path for method, path in server.requests) == 2


def test_a_download_that_fails_is_told_and_works_the_next_time(server, client, model):
    server.commit("ann/flaky", files(model))
    server.trouble["model.safetensors"] = ["cut", 500]
    with pytest.raises(DataError, match=r"ann/flaky@main .*answered 500 .*again"):
        client.load("ann/flaky")
    server.requests.clear()
    assert client.load("ann/flaky")["sha256"] == checkpoint.load(model).sha256
    assert not any(method == "GET" and path.endswith("config.yaml") for method, path in server.requests)  # kept


def test_weights_that_are_not_those_of_the_config_are_refused(server, client, model):
    damaged = files(model)
    damaged["model.safetensors"] = damaged["model.safetensors"][:-1] + b"\0"
    oid = server.commit("ann/damaged", damaged)
    with pytest.raises(DataError, match=rf"ann/damaged@{oid} from the hub: .*sha256 .*delete .* its author"):
        client.load("ann/damaged")


@pytest.mark.parametrize("lost", ["config.yaml", "model.safetensors"])
def test_a_missing_file_is_named(server, client, model, lost):
    kept = {name: data for name, data in files(model).items() if name != lost}
    server.commit(f"ann/no-{lost}", {**kept, "pytorch_model.bin": b"pickle"})
    server.requests.clear()
    with pytest.raises(DataError, match=f"ann/no-{lost}@main has no {lost}"):
        client.load(f"ann/no-{lost}")
    assert not any("pytorch_model.bin" in path for _, path in server.requests)  # what is not ours is not fetched


def test_private_gated_and_absent_repositories(server, home, client, model, tmp_path):
    server.commit("ann/private", files(model), private=True)
    server.commit("ann/gated", files(model), gated=True)
    server.commit("ann/here", files(model))
    for where, message in (
        ("ann/private", r"ann/private@main .*401.*HF_TOKEN"),
        ("ann/absent", r"ann/absent@main .*401.*check the name"),
        ("ann/gated", r"ann/gated@main .*gated.*accept its terms"),
        ("ann/here@nowhere", r"ann/here@nowhere .*no such revision"),
        ("ann/he--re", r"no name of a repository"),
    ):
        with pytest.raises(DataError, match=message):
            client.load(where)
    with Client(HF_ENDPOINT=server.url, HF_HOME=str(tmp_path), HF_TOKEN=TOKEN) as member:
        assert member.load("ann/private")["sha256"] == checkpoint.load(model).sha256
        with pytest.raises(DataError, match=r"ann/absent@main .*no such repository"):
            member.load("ann/absent")


def test_a_path_that_is_here_wins_and_a_slip_is_not_looked_up(client, server, model, tmp_path, monkeypatch):
    server.commit("tests/foundation", files(model))  # a stranger's repository with the name of a folder here
    server.requests.clear()
    for where in ("tests/foundation", "tests/no-such-run", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"not a hub folder|no config\.yaml"):
            client.load(where)
    assert server.requests == []
    assert client.load("hf://tests/foundation")["sha256"] == checkpoint.load(model).sha256


def test_offline_without_a_copy_no_server_and_no_cache(offline, server, model, tmp_path):
    with pytest.raises(DataError, match=r"ann/never@main .*not in the cache.*HF_HUB_OFFLINE"):
        offline.load("ann/never")
    server.commit("ann/fresh", files(model))
    (tmp_path / "file").touch()
    for url, home, message in (
        (server.url, tmp_path / "file" / "home", "cache cannot be written.*HF_HOME"),
        ("http://127.0.0.1:9", tmp_path, "cannot be reached.*HF_ENDPOINT"),
    ):
        with Client(HF_ENDPOINT=url, HF_HOME=str(home)) as client, pytest.raises(DataError, match=message):
            client.load("ann/fresh")


def test_only_a_local_folder_that_loads_is_pushed(model, tmp_path):
    with pytest.raises(DataError, match="no folder here"):
        hub.push(tmp_path / "none", "ann/x")
    for repo in ("x", "ann/x@main", "a/b/c"):
        with pytest.raises(DataError, match="expected owner/name"):
            hub.push(model, repo)
    folder = head(tmp_path / "m", 3)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="damaged"):
        hub.push(folder, "ann/x")


def test_a_card_says_what_how_and_from_what(model):
    text = (model / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "foundation-policy"
    assert front["pipeline_tag"] == "video-classification" and "inverse-dynamics" in front["tags"]
    for expected in ("| hours | 1.25 |", "| source videos | 3 |", "| loss\\|x | 0.5 |", "hub.load(", "## Made by"):
        assert expected in text
