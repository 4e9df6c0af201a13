"""A linear support vector machine on frozen features, stored as plain arrays."""

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines import untrusted
from pipelines.manifest import write_atomic
from pipelines.schema import DataError
from pipelines.shard_writer import payload
from pipelines.shards import unpack

MAX_FILE_BYTES = 1 << 28
HELD_OUT = 4  # one group in so many is held out to measure the classifier
FLOOR = 1e-3  # smallest spread of a feature; features that hardly vary are not blown up


@dataclass(frozen=True, eq=False)
class Classifier:
    """score = weight . (features - mean) / std + bias; positive = artifact."""

    weight: np.ndarray  # float32 [d]
    bias: float
    mean: np.ndarray  # float32 [d]
    std: np.ndarray  # float32 [d]
    embedding: str  # name of the embedding it was fitted on

    def scores(self, features):
        """float32 [n d] -> float64 [n]."""
        return (np.asarray(features, np.float64) - self.mean) / self.std @ self.weight.astype(np.float64) + self.bias

    def save(self, path):
        facts = json.dumps({"embedding": self.embedding, "bias": self.bias, "version": 1}, sort_keys=True)
        arrays = {"weight": self.weight, "mean": self.mean, "std": self.std}
        write_atomic(Path(path), payload("npz", {**arrays, "facts": np.frombuffer(facts.encode(), np.uint8)}))

    @classmethod
    def load(cls, path, embedding=None):
        """Reads a file of `save`; DataError when it is damaged or was fitted on another embedding."""
        arrays = unpack(untrusted.read_bytes(path, MAX_FILE_BYTES), str(path))
        try:
            facts = untrusted.parse_json(arrays["facts"].tobytes(), f"{path} facts")
            loaded = cls(arrays["weight"], float(facts["bias"]), arrays["mean"], arrays["std"], facts["embedding"])
            shapes = {loaded.weight.shape, loaded.mean.shape, loaded.std.shape}
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is no classifier of pipelines.filter ({error!r}); fit it again") from error
        if len(shapes) != 1 or loaded.weight.ndim != 1:
            raise DataError(f"{path} holds arrays of different shapes {sorted(shapes)}; fit it again")
        if embedding not in (None, loaded.embedding):
            raise DataError(
                f"{path} was fitted on the embedding {loaded.embedding!r}, this run uses {embedding!r};"
                " choose the same embedding=, or fit again with clean= and artifact="
            )
        return loaded

    def fingerprint(self):
        arrays = (self.weight, self.mean, self.std)
        digest = hashlib.sha256(f"{self.embedding} {self.bias!r}".encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def fit(features, labels, groups, embedding, c=1e-3):
    """Fits on all examples; measures on groups held out of a first fit -> (Classifier, flat metrics).

    features float32 [n d]; labels bool [n], True = artifact; groups str [n]: frames of one source stay together,
    because neighbouring frames on both sides would make the measurement a memory test. c: the SVM's C.
    """
    labels, groups = np.asarray(labels, bool), np.asarray(groups)
    if labels.all() or not labels.any():
        got = "artifact" if len(labels) and labels.all() else "clean"
        raise DataError(f"all {len(labels)} labelled frames are {got}; the filter needs examples of both kinds")
    shuffled = sorted(set(groups.tolist()), key=lambda g: (zlib.crc32(str(g).encode()), g))
    aside = np.isin(groups, shuffled[: -(-len(shuffled) // HELD_OUT)])
    metrics = {"labelled_frames": len(labels), "held_out_frames": int(aside.sum())}
    if all(len(set(labels[part].tolist())) == 2 for part in (aside, ~aside)):
        from sklearn.metrics import roc_auc_score

        scores = _fit(features[~aside], labels[~aside], embedding, c).scores(features[aside])
        metrics |= {
            "frame_auc": float(roc_auc_score(labels[aside], scores)),
            "frame_auc_chance": 0.5,
            "frame_accuracy": float(((scores > 0) == labels[aside]).mean()),
            "majority_frame_accuracy": float(max(labels[aside].mean(), 1 - labels[aside].mean())),
        }
    return _fit(features, labels, embedding, c), metrics


def _fit(features, labels, embedding, c):
    from sklearn.svm import LinearSVC

    mean, std = features.mean(0), np.maximum(features.std(0), FLOOR)
    svm = LinearSVC(C=c, class_weight="balanced", max_iter=10_000, random_state=0)
    svm.fit((features - mean) / std, labels)
    to_32 = (np.asarray(a, np.float32) for a in (svm.coef_[0], mean, std))
    weight, mean, std = to_32
    return Classifier(weight, float(svm.intercept_[0]), mean, std, embedding)
