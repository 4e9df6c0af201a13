"""Generalised advantage estimation on chunks of a running episode."""

import torch


def gae(reward_t, value_t, terminated_t, truncated_t, gamma, lambda_):
    """Generalised advantage estimation (Eq. 16, arXiv:1506.02438), bootstrapping through truncation.

        delta_t = r_t + gamma (1 - terminated_t) V_t+1 - V_t
        A_t = delta_t + gamma lambda (1 - terminated_t) (1 - truncated_t) A_t+1

    reward_t, terminated_t, truncated_t [b t]; value_t [b t+1], one more: the value of the observation after the last
    action. Where an episode was cut, value_t[:, t+1] must be the value of its final observation, not of the next
    episode's first one (the rollout keeps that observation as a frame of its own). Returns advantages [b t].
    """
    continues = 1.0 - terminated_t.to(value_t.dtype)  # b t
    same_episode = continues * (1.0 - truncated_t.to(value_t.dtype))  # b t
    delta_t = reward_t + gamma * continues * value_t[:, 1:] - value_t[:, :-1]  # b t
    advantage_t = torch.zeros_like(delta_t)
    running = torch.zeros_like(delta_t[:, 0])  # b
    for t in reversed(range(delta_t.shape[1])):
        running = delta_t[:, t] + gamma * lambda_ * same_episode[:, t] * running
        advantage_t[:, t] = running
    return advantage_t
