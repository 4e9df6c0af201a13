"""A process that loads models: huggingface_hub reads its environment once, so each environment is a process.

Reads one JSON {"where": address, "by": who loads it} per line and answers {"sha256", "origin"} of the model, or
{"error": message}.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

from pipelines.schema import DataError


class Client:
    """`with Client(HF_ENDPOINT=..., HF_HOME=...) as client: client.load("owner/name")`"""

    def __init__(self, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**clean, **quiet, "PYTHONPATH": os.getcwd(), **environment},
        )  # fmt: skip

    def load(self, where, by="hub"):
        """The answer for an address; DataError if that is what the process got. by: a key of LOADERS."""
        self.process.stdin.write(json.dumps({"where": str(where), "by": by}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise DataError(answer["error"])
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()


def by_hub(where):
    from foundation import hub

    return hub.load(where)


def by_policy(where):
    """As evaluate's policy= and finetune's init= do."""
    from foundation.evaluate import load_policy

    return load_policy(where)


def by_init(where):
    """As pretrain's init= does; the same network once more, and the model itself."""
    from foundation.pretrain import initial_net

    bundle = by_hub(where)
    _, words = initial_net(bundle.config["net"], where)
    assert bundle.origin in words
    return bundle


def by_label(where):
    """As label's idm= does."""
    from pipelines.labeller import Labeller, Settings

    return Labeller(where, Settings(), "cpu").bundle


def by_language(where):
    """As method=lamo's language.init= does; in place of the sha256 the sum of its weights."""
    from pipelines import language_release

    found = language_release.load(where)
    assert language_release.architecture(where)["model_type"] == "llama"
    return SimpleNamespace(sha256=sum(float(value.sum()) for value in found.weights.values()), origin=found.origin)


LOADERS = {"hub": by_hub, "policy": by_policy, "init": by_init, "label": by_label, "language": by_language}


def serve():
    for text in sys.stdin:
        call = json.loads(text)
        try:
            bundle = LOADERS[call["by"]](call["where"])
            answer = {"sha256": bundle.sha256, "origin": bundle.origin}
        except DataError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
