"""Conservative Q-learning over actions that can be counted (CQL, arXiv:2006.04779), and its calibration (Cal-QL)."""


def cql_penalty(q_t, action_t, return_t=None):
    """sum_k mean( log sum_a exp max(Q_k(s, a), R) - Q_k(s, a_data) ) (CQL, Eq. 4).

    q_t [e b n] of all actions, action_t int [b]. The sum is what samples of the policy estimate where actions
    cannot be counted; with return_t [b], the Monte-Carlo return R, those Q's are not pushed below it (Cal-QL, Eq. 5.1,
    arXiv:2303.05479). That of the action in the data stays as it is.
    """
    policy = q_t if return_t is None else q_t.maximum(return_t[:, None])  # e b n
    return (policy.logsumexp(-1) - chosen(q_t, action_t)).mean(-1).sum()


def soft_policy_loss(log_probs, q_t, temperature):
    """mean sum_a pi(a|s) (temperature log pi(a|s) - min_k Q_k(s, a)) (SAC with discrete actions, arXiv:1910.07207).

    log_probs [b n], q_t [e b n], without gradient here. The least of it is pi = softmax(min_k Q_k / temperature).
    """
    return (log_probs.exp() * (temperature * log_probs - q_t.detach().amin(0))).sum(-1).mean()


def chosen(q, action):
    """Q_k(s, a) [e b] of actions int [b] among those of all, [e b n]."""
    return q.gather(-1, action.long().expand(len(q), -1)[..., None])[..., 0]
