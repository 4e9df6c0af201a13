"""Networks that begin with the image encoder of another one, each with a copy of its own."""

from foundation import hub
from models.frame_encoders import FrameEncoder
from models.icvf import ENCODER
from pipelines.schema import DataError

SAME = ("height", "width", "encoder", "channels")  # of the two nets' configs


def loaded(address):
    """(Bundle, weights of its FrameEncoder); DataError for a network without one."""
    bundle = hub.load(address)
    weights = bundle.net.state_dict()
    own = {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}
    if not own:
        raise DataError(f"{address} has no encoder of single frames; give a run of icvf or idm_frames on frames")
    return bundle, own


def frame_encoder(address):
    """The config of the FrameEncoder at `address`, by which a network gets one like it."""
    theirs = loaded(address)[0].config["net"]
    sizes = {name: theirs[name] for name in ("height", "width", "channels")}
    return {"_target_": "models.frame_encoders.FrameEncoder", "kind": theirs["encoder"], **sizes}


def check_encoder(net, address, init):
    """`net`, a network's config, unchanged; DataError where the encoder at `address` does not fit it."""
    if address is None:
        return net
    if init is not None:
        raise DataError(f"init={init} brings its encoders; leave out method.encoder={address}, or init")
    theirs = loaded(address)[0].config["net"]
    different = [name for name in SAME if net[name] != theirs.get(name)]
    if different:
        options = " ".join(f"method.net.{name}={theirs.get(name)}".replace(" ", "") for name in different)
        raise DataError(f"method.encoder={address} was built otherwise; set {options}")
    return net


class EncoderRate:
    """Part of a task: FrameEncoders of its net learn at the rate `encoder_lr`, None = as all others."""

    encoder_lr = None

    def rates(self):
        if self.encoder_lr is None:
            return super().rates()
        if self.encoder_lr <= 0:
            given = f"method.encoder_lr={self.encoder_lr}"
            raise DataError(f"{given}: expected a rate above 0; method.train_encoder=false leaves encoders as they are")
        encoders = [p for module in encoders_of(self.net) for p in module.parameters()]
        if not any(p.requires_grad for p in encoders):
            given = f"method.encoder_lr={self.encoder_lr}"
            raise DataError(f"{given} is of no use to encoders that do not learn; leave it out, or train_encoder=false")
        apart = {id(p) for p in encoders}
        others = [p for p in self.parameters() if id(p) not in apart]
        return [(self.optimizer["lr"], others), (self.encoder_lr, encoders)]


def encoders_of(net):
    """Its FrameEncoders."""
    return [module for module in net.modules() if isinstance(module, FrameEncoder)]


def start_from(net, address, train=True):
    """Copies the encoder at `address` into every FrameEncoder of `net`; where it came from in words, or None.

    train: whether they go on learning, also where they came with init= or are random.
    """
    encoders = encoders_of(net)
    for module in encoders:
        module.requires_grad_(train)
    if address is None:
        return None
    bundle, own = loaded(address)
    for module in encoders:
        module.load_state_dict(own)
    return f"random weights, but for the image encoders, which are that of {hub.origin(address, bundle)}"
