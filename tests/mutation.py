"""Mutation testing of the maths: what `make mutate` runs, on the unit tests alone.

mutmut changes one place at a time (a sign, a number, an argument) and runs the tests that reach it. In each part at
least nine of ten mutants must be killed, and every survivor must have its reason in survivors.toml. Name parts, as in
`.venv/bin/python tests/mutation.py EM`, to look at these alone; what did not change since is not run again.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

PARTS = {  # functions and classes of latent_digits/, by module and name
    "likelihoods and KL": ["densities.*"],
    "elbo": ["training.vae_objective", "latents.latent_terms", "latents.latent_elbo"],
    "estimators": ["log_prob.*"],
    "EM": ["em.*", "mixture.*"],
}
FORMS = ("x_{}__mutmut_*", "xǁ{}ǁ*")  # how mutmut names mutants of a function and of a class
KILLED = 0.9  # the share that must be
# how mutmut names the end of a mutant's tests: pytest's exit codes, and a processor time that was exceeded
OUTCOMES = {0: "survived", 1: "killed", 3: "killed"} | dict.fromkeys((-24, 24, 36, 152, 255), "timeout")
SURVIVORS = Path(__file__).with_name("survivors.toml")


def name_of(mutant: str) -> str:
    """What a mutant is of: latent_digits.em.xǁSumsǁadd__mutmut_1 -> em.Sums."""
    module, _, bare = mutant.removeprefix("latent_digits.").rsplit("__mutmut_", 1)[0].partition(".x")
    return f"{module}.{bare.split('ǁ')[1] if 'ǁ' in bare else bare.removeprefix('_')}"


def is_in(mutant: str, part: str) -> bool:
    """Whether a mutant belongs to a part."""
    return any(fnmatch(name_of(mutant), pattern) for pattern in PARTS[part])


def change(mutant: str) -> str:
    """What the mutant changes: "- old" and "+ new", a line each."""
    command = [Path(sys.executable).parent / "mutmut", "show", mutant]
    told = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    lines = [line for line in told.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in lines)


def known_reasons() -> dict[str, str]:
    """Why a mutant may survive, by what it changes."""
    groups = tomllib.loads(SURVIVORS.read_text(encoding="utf-8"))["group"]
    return {text.strip(): group["reason"] for group in groups for text in group["mutants"]}


def judge(part: str, outcomes: Mapping[str, str], changes: Mapping[str, str], reasons: Mapping[str, str]) -> list[str]:
    """What is wrong with a part: too few mutants killed, one not tested, a survivor without a reason. Prints the share.

    outcomes: how each mutant ended; changes: what the survivors change. An endless loop is noticed, too.
    """
    survivors = [mutant for mutant, outcome in outcomes.items() if outcome not in ("killed", "timeout")]
    share = 1 - len(survivors) / len(outcomes)
    slow = sum(outcome == "timeout" for outcome in outcomes.values())
    killed = f"{len(outcomes) - len(survivors)} of {len(outcomes)} mutants killed"
    print(f"{part}: {killed}, {share:.1%}; {slow} by a timeout")
    wrong = [f"{part}: {share:.1%} killed, less than {KILLED:.0%}"] if share < KILLED else []
    for mutant in survivors:
        if outcomes[mutant] != "survived":
            wrong.append(f"{mutant}: {outcomes[mutant]}")
        elif changes[mutant] not in reasons:
            wrong.append(f"{mutant} survived, without a reason in {SURVIVORS.name}:\n{changes[mutant]}")
    return wrong


def run_mutmut(parts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Let mutmut make the mutants of these parts and test them. Returns how each ended, by part."""
    names = [pattern.split(".") for part in parts for pattern in PARTS[part]]
    patterns = [f"latent_digits.{module}.{form.format(name)}" for module, name in names for form in FORMS]
    command = [Path(sys.executable).parent / "mutmut", "run", *patterns]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # mutmut forks: where torch had threads, a mutant would hang
    subprocess.run(command, env=alone, check=True)
    codes = {}
    for path in Path("mutants/latent_digits").glob("*.meta"):
        codes |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    ends = {mutant: OUTCOMES.get(code, f"ended with {code}") for mutant, code in codes.items()}
    return {part: {mutant: end for mutant, end in ends.items() if is_in(mutant, part)} for part in parts}


def main() -> int:
    """Test the parts named, or all, and report. Returns 1 where something is wrong."""
    ends, wrong = run_mutmut(sys.argv[1:] or PARTS), []
    for part, outcomes in ends.items():
        survivors = [mutant for mutant, outcome in outcomes.items() if outcome == "survived"]
        changes = {mutant: change(mutant) for mutant in tqdm(survivors, desc="survivors", leave=False)}
        wrong += judge(part, outcomes, changes, known_reasons())
    print(*wrong, sep="\n\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
