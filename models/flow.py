"""Dense optical flow between successive frames: a fixed function of pixels, computed once per frame and kept.

Dense inverse search (Kroeger et al. 2016, arXiv:1603.03590) as OpenCV has it. It sees the motion that an
inverse-dynamics model would otherwise have to learn to see, which takes more labels than anything else it learns.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

cv2.setNumThreads(1)  # OpenCV's stripes change the result with their number; frames run in parallel instead
_local = threading.local()


def flow_to_next(frames):
    """Motion of the pixels from each frame to the next.

    uint8 [b t h w 3] -> float16 [b t h/2 w/2 2], in pixels to the right and down; zero for the last frame of a window.
    The same frames give the same flow, however many threads torch has.
    """
    b, t, h, w = frames.shape[:4]
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames.cpu().numpy().reshape(-1, h, w, 3)]
    flow = np.zeros((b * t, h // 2, w // 2, 2), np.float16)
    starts = [i for i in range(b * t) if i % t != t - 1]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for i, field in zip(starts, pool.map(lambda i: _pair(grey[i], grey[i + 1]), starts), strict=True):
            flow[i] = field
    return torch.from_numpy(flow).unflatten(0, (b, t)).to(frames.device)


def _pair(now, then):
    if not hasattr(_local, "search"):  # it keeps its buffers, so one per thread
        _local.search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        _local.search.setFinestScale(1)  # half resolution: 4 times the rate of full, equal labels
    field = _local.search.calc(now, then, None)  # h w 2
    return cv2.resize(field, (now.shape[1] // 2, now.shape[0] // 2), interpolation=cv2.INTER_AREA)
