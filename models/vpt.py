"""The nets of the VPT release (arXiv:2206.11795; openai/Video-Pre-Training), inverse dynamics and policy.

Parameter names, shapes, net keywords and arithmetic are the release's, so official weights load by key
(`pipelines/vpt_release.py`). For new models `models/inverse_dynamics.py` and `models/video_policy.py` are the better
start: this inverse dynamics model has no notion of order beyond five frames and spends 14 % of its time in one layer.

Where we depart, without touching a parameter: an episode may begin anywhere in a chunk (the release looks at its first
frame only), and the mouse term counts only where the buttons class moves the mouse (`models.heads.Joint`).
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from models.actor_critic import ValueHead
from models.heads import Factored, Joint
from models.vpt_layers import FanIn, ImageProcess, TimeConv, Trunk, fan_in_linear

IMPLEMENTED = {  # net keywords whose other values never shipped
    "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1},
    "impala_kwargs": {"post_pool_groups": 1},
    "only_img_input": True,
    "pointwise_use_activation": False,
    "recurrence_is_residual": True,
    "recurrence_type": "transformer",
    "use_pointwise_layer": True,
    "use_pre_lstm_ln": False,
    "diff_mlp_embedding": False,
}


def check_keywords(given):
    """Refuses a net keyword that would change the arithmetic; like the release, ignores those it does not know."""
    for name, expected in IMPLEMENTED.items():
        if name in given and given[name] != expected:
            raise ValueError(f"net keyword {name}={given[name]!r} is not implemented; VPT nets have {expected!r}")


class Net(nn.Module):
    """Frames -> latents: what the two models share. Keyword names are those of the release's `.model` files."""

    def __init__(self, first_norm, hidsize, attention_heads, attention_memory_size, timesteps, n_recurrence_layers,
                 img_shape, impala_width, impala_chans, pointwise_ratio):  # fmt: skip
        super().__init__()
        if attention_heads < 1 or hidsize % attention_heads:
            raise ValueError(f"hidsize {hidsize} is not a multiple of attention_heads {attention_heads}")
        channels = [int(impala_width * c) for c in impala_chans]
        self.img_process = ImageProcess(img_shape, channels, hidsize, first_norm)
        maxlen = attention_memory_size - timesteps
        self.recurrent_layer = Trunk(hidsize, attention_heads, maxlen, n_recurrence_layers, pointwise_ratio)
        self.lastlayer = fan_in_linear(hidsize, hidsize)
        self.final_ln = nn.LayerNorm(hidsize)

    def last(self, x, skip_lastlayer=False):
        x = F.relu(x)
        return self.final_ln(x if skip_lastlayer else self.lastlayer(x))


class ReleaseHead(nn.Module):
    """Linear under the release's parameter name; logits are divided by `temperature`, in fp32."""

    def __init__(self, width, size, temperature):
        super().__init__()
        self.linear_layer = nn.Linear(width, size)
        self.temperature = temperature

    def forward(self, latent):
        return self.linear_layer(latent).float() / self.temperature


class Vpt(nn.Module):
    """What the models share: a check of the frames, and encoding them in pieces when no gradient is wanted."""

    frames_at_once = 32  # bounds the memory of full-resolution maps while labelling and acting

    def check_frames(self, frames):
        if tuple(frames.shape[2:]) != self.frame_shape or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape[2:])}, this net takes uint8 {self.frame_shape};"
                " resize them bilinearly without keeping the aspect"
            )

    def in_pieces(self, encode, planes):
        """encode(planes [n c h w]) -> [n d], piece by piece unless a graph is being recorded."""
        if torch.is_grad_enabled() or len(planes) <= self.frames_at_once:
            return encode(planes)
        return torch.cat([encode(piece) for piece in planes.split(self.frames_at_once)])

    def to_unit(self, planes):
        """uint8 -> [0, 1], in the memory format of the convolutions' weights."""
        weight = self.net.img_process.cnn.stacks[0].firstconv.layer.weight
        last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        return planes.contiguous(memory_format=layout).float().div_(255)


class VptInverseDynamics(Vpt):
    """uint8 [b t h w c] -> Factored, the release's inverse dynamics model.

    idm_skip_lastlayer: the release computes `lastlayer` and then overwrites its result; True does as the release.
    height, width: of the frames, if given they replace those of `img_shape` (whose channels are the first conv's).
    """

    reach = 2  # half the length of the temporal kernel

    def __init__(self, n_keys=20, n_bins=11, temperature=4.0, idm_skip_lastlayer=True, height=None, width=None, *,
                 hidsize=4096, attention_heads=32, attention_mask_style="none", attention_memory_size=128,
                 timesteps=128, n_recurrence_layers=2, img_shape=(128, 128, 128), impala_width=16,
                 impala_chans=(16, 32, 32), pointwise_ratio=4, conv3d_params=None, **others):  # fmt: skip
        super().__init__()
        check_keywords(others)
        if attention_mask_style != "none":
            raise ValueError(f"attention_mask_style is {attention_mask_style!r}, this model needs 'none'")
        self.window, self.n_keys, self.n_bins, self.skip_lastlayer = timesteps, n_keys, n_bins, idm_skip_lastlayer
        img_shape = (height or img_shape[0], width or img_shape[1], img_shape[2])
        self.frame_shape = (img_shape[0], img_shape[1], 3)
        self.net = Net(True, hidsize, attention_heads, attention_memory_size, timesteps, n_recurrence_layers,
                       img_shape, impala_width, impala_chans, pointwise_ratio)  # fmt: skip
        self.net.conv3d_layer = temporal_conv(img_shape[2], conv3d_params or {})
        self.pi_head = nn.ModuleDict({
            "buttons": ReleaseHead(hidsize, 2 * n_keys, temperature),
            "camera": ReleaseHead(hidsize, 2 * n_bins, temperature),
        })  # fmt: skip

    def encode(self, frames, keep=None):
        """uint8 [b t h w c] -> features [b t d]; beyond the ends of the array the temporal kernel sees zeros.

        keep: (start, stop), frames whose features are wanted, the others being context only; all if left out.
        """
        self.check_frames(frames)
        start, stop = keep or (0, frames.shape[1])
        padded = F.pad(frames, (0, 0, 0, 0, 0, 0, self.reach, self.reach))
        stacked = torch.stack([padded[:, start + k : stop + k] for k in range(2 * self.reach + 1)], 2)
        planes = rearrange(stacked, "b t k h w c -> (b t) (k c) h w")
        return rearrange(self.in_pieces(self._encode, planes), "(b t) d -> b t d", t=stop - start)

    def _encode(self, planes):
        """The temporal convolution as a 1x1 convolution over the channels of five stacked frames."""
        layer = self.net.conv3d_layer.layer
        kernel = rearrange(layer.weight, "o c k 1 1 -> o (k c) 1 1")
        return self.net.img_process(F.conv2d(self.to_unit(planes), kernel, layer.bias).relu_())

    def decode(self, features, mask=None):
        """features [b t d] of one window, mask bool [b t] (True = real) -> Factored."""
        latent = self.net.last(self.net.recurrent_layer.everything(features, mask), self.skip_lastlayer)
        keys = rearrange(self.pi_head["buttons"](latent), "b t (k two) -> b t k two", two=2)
        camera = rearrange(self.pi_head["camera"](latent), "b t (two k) -> b t two k", two=2)
        return Factored.from_logits(keys, camera)

    def forward(self, frames, mask=None):
        return self.decode(self.encode(frames), mask)


def temporal_conv(out_channels, params):
    """conv3d over time alone, from the release's `conv3d_params`; checked, because `_encode` relies on its form."""
    kernel, padding = list(params.get("kernel_size", [5, 1, 1])), list(params.get("padding", [2, 0, 0]))
    if (kernel, padding) != ([5, 1, 1], [2, 0, 0]) or params.get("outchan", out_channels) != out_channels:
        raise ValueError(f"conv3d_params {params}: expected kernel [5,1,1], padding [2,0,0], outchan {out_channels}")
    return FanIn(TimeConv(params.get("inchan", 3), out_channels, kernel[0]))


class VptPolicy(Vpt):
    """policy(window) -> (Joint, state), the release's foundation policy and its critic.

    window: {"observation": uint8 [b t h w c], "first": bool [b t], optional}; instead of frames it may bring
    "features" [b t d], outputs of `encode`. A frame sees the last 128 frames (`attention_memory_size - timesteps`),
    itself included, of its own episode; any chunk length works with the same weights.

    camera_on: per buttons class, whether it moves the mouse. Left out: every odd class, which holds for a product of
    groups with the mouse bit last and at most one exclusive class after it (VPT's 8,641).
    """

    def __init__(self, n_buttons=8641, n_camera=121, camera_on=None, camera_null=60, temperature=1.0,
                 height=None, width=None, *, hidsize=2048, attention_heads=16, attention_mask_style="clipped_causal",
                 attention_memory_size=256, timesteps=128, n_recurrence_layers=4, img_shape=(128, 128, 3),
                 impala_width=8, impala_chans=(16, 32, 32), pointwise_ratio=4, **others):  # fmt: skip
        super().__init__()
        check_keywords(others)
        if attention_mask_style != "clipped_causal" or attention_memory_size <= timesteps:
            raise ValueError(
                f"attention_mask_style {attention_mask_style!r}, memory {attention_memory_size}, timesteps {timesteps}:"
                " a policy needs 'clipped_causal' and attention_memory_size > timesteps"
            )
        if camera_on is not None and len(camera_on) != n_buttons:
            raise ValueError(f"camera_on lists {len(camera_on)} classes, n_buttons is {n_buttons}")
        self.width = hidsize
        img_shape = (height or img_shape[0], width or img_shape[1], img_shape[2])
        self.frame_shape = img_shape
        self.net = Net(False, hidsize, attention_heads, attention_memory_size, timesteps, n_recurrence_layers,
                       img_shape, impala_width, impala_chans, pointwise_ratio)  # fmt: skip
        self.pi_head = nn.ModuleDict({
            "buttons": ReleaseHead(hidsize, n_buttons, temperature),
            "camera": ReleaseHead(hidsize, n_camera, temperature),
        })  # fmt: skip
        self.value_head = ValueHead(hidsize)
        self.camera_null = camera_null
        on = [i % 2 == 1 for i in range(n_buttons)] if camera_on is None else list(camera_on)
        self.register_buffer("camera_on", torch.as_tensor(on, dtype=torch.bool), persistent=False)

    @property
    def encoder(self):
        """The image encoder, to freeze it."""
        return self.net.img_process

    def initial_state(self, batch_size, device=None):
        """Empty memory: (valid [b m], ((k, v), ...)); zeroing the rows of an environment resets it."""
        return self.net.recurrent_layer.initial_state(batch_size, device)

    def encode(self, frames):
        """uint8 [b t h w c] -> features [b t d], each frame by itself."""
        self.check_frames(frames)
        planes = rearrange(frames, "b t h w c -> (b t) c h w")
        features = self.in_pieces(lambda piece: self.net.img_process(self.to_unit(piece)), planes)
        return rearrange(features, "(b t) d -> b t d", t=frames.shape[1])

    def latent(self, window, state=None):
        """-> (latent [b t d], state after the chunk). The memory keeps its graph: detach it between chunks."""
        features = window["features"] if "features" in window else self.encode(window["observation"])
        first, state = window.get("first"), state or self.initial_state(len(features), features.device)
        if first is None:
            first = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
        x, state = self.net.recurrent_layer.causal(features, first, state)
        return self.net.last(x), state

    def head(self, latent):
        """[... d] -> Joint over [...]."""
        buttons, camera = self.pi_head["buttons"](latent), self.pi_head["camera"](latent)
        return Joint(F.log_softmax(buttons, -1), F.log_softmax(camera, -1), self.camera_on, self.camera_null)

    def forward(self, window, state=None):
        latent, state = self.latent(window, state)
        return self.head(latent), state

    def step(self, observation, first, state):
        """observation uint8 [b h w c], first bool [b] -> (Joint over [b], latent [b d], state)."""
        window = {"observation": observation[:, None], "first": first[:, None]}
        latent, state = self.latent(window, state)
        latent = rearrange(latent, "b 1 d -> b d")
        return self.head(latent), latent, state
