"""Model cards: the README.md of a hub folder, with front matter that the hub can read."""

import math

import yaml

LIBRARY = "foundation-policy"
TASKS = {  # words of the hub
    "policy": "reinforcement-learning", "inverse-dynamics": "video-classification", "language": "text-generation",
    "representation": "feature-extraction",
}  # fmt: skip
USES = {
    "policy": "init= or policy=", "inverse-dynamics": "idm=", "language": "init= or method.language.init=",
    "representation": "init=",
}  # fmt: skip


def render(title, kind, lead, tables, command, **facts):
    """Text of a card. kind: a key of TASKS; tables: {heading: {name: value}}, empty ones left out; facts: front matter.

    command: what was typed to make the model.
    """
    front = {"library_name": LIBRARY, "pipeline_tag": TASKS[kind], "tags": [LIBRARY, kind], **facts}
    load = 'from foundation import hub\nbundle = hub.load("<this folder, or owner/name@revision>")'
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {line(title)}",
        lead,
        *(f"## {heading}\n\n{table(rows)}" for heading, rows in tables.items() if rows),
        f"## Made by\n\n```\n{line(command)}\n```",
        f"## Use\n\n```python\n{load}\nbundle.net, bundle.spec, bundle.size, bundle.fps\n```\n\nor give the same"
        f" address as `{USES[kind]}` to a command of {LIBRARY}. The weights are safetensors; nothing in this folder is"
        " run.",
    ]
    return "\n\n".join(parts) + "\n"


def table(rows):
    """{name: value} -> a Markdown table; numbers with four digits, None left out."""
    cells = [f"| {line(name)} | {cell(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *cells])


def cell(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    return line(", ".join(map(str, value)) if isinstance(value, list | tuple) else value)


def line(value):
    """One line of text that cannot end a table cell or a block of code."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("```", "'''")


def numbers(summary):
    """The finite numbers of a summary, by name."""
    known = {name: v for name, v in sorted(summary.items()) if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: v for name, v in known.items() if math.isfinite(v)}
