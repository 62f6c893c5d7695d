"""What a recipe can say. Every field is documented here and read somewhere; ``docs/recipes.md`` is made from it.

Invariants: frozen; unknown keys are errors; values are not coerced (``"3"`` is not 3); what contradicts itself is
refused here, before anything is started.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from roll_core.config.agent import Agent
from roll_core.config.algorithm import Algorithm, Critic, Rhythm, contradiction
from roll_core.config.compute import Engine, Learner, Placement, Weights, misplaced
from roll_core.config.section import Natural, Positive, Seconds, Section, Share
from roll_core.config.watching import Alerts, Loggers


class Env(Section):
    """The environment and its tasks."""

    name: str
    """Name of a built environment; `rock env list` shows them."""
    train_split: str = "train"
    """Split of the tasks to train on (and to demonstrate)."""
    eval_split: str = "test"
    """Split of the held-out tasks to evaluate on."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the environment's `reset` as they are."""


class Platform(Section):
    """Where episodes are played."""

    mode: Literal["rock", "local"] = "rock"
    """`rock`: in sandboxes of a platform. `local`: in processes of this machine, without isolation or recovery, to tune
    a recipe offline."""
    url: str = ""
    """Address of the platform. Empty: `ROCK_URL`, else the one that runs here, else one started for the run."""
    runtime: str = "auto"
    """Runtime of a platform started for the run: `auto`, `docker` or `bubblewrap`."""
    wait_s: Seconds = 120.0
    """How long an episode waits for a sandbox."""
    ttl_s: Seconds = 60.0
    """A sandbox is taken back this long after the trainer fell silent."""
    outage_s: Seconds = 300.0
    """The run stops (to be resumed) when no episode could be played, or nothing be reported, for this long."""
    local_entry: str = ""
    """`local` only: class of the environment as `module:Class`."""
    local_bundle: str = ""
    """`local` only: directory with `tasks.json` and `data/`, as the environment's `prepare` writes it."""
    local_workers: Natural = 0
    """`local` only: processes that play; 0 plays in a thread of the trainer."""


class Model(Section):
    """The policy's network."""

    source: Literal["new", "checkpoint"] = "new"
    """`new`: Qwen3-shaped with random weights and the sizes below. `checkpoint`: loaded from `path`."""
    path: str = ""
    """Directory of a Hugging Face checkpoint (Qwen3, Qwen2 or Llama), or its name on the Hub."""
    hidden: Positive = 128
    """Width of the residual stream."""
    layers: Positive = 4
    """Number of blocks."""
    heads: Positive = 4
    """Query heads."""
    kv_heads: Positive = 2
    """Key and value heads; divides `heads`."""
    head_dim: Positive = 32
    """Width of a head; even."""
    intermediate: Positive = 384
    """Width of the feed-forward layer."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary embedding."""
    max_context: Positive = 2048
    """Longest sequence in tokens, an episode's prompt and answers together; episodes are truncated there."""


class Tokenizer(Section):
    """From text to tokens."""

    source: Literal["train", "checkpoint"] = "train"
    """`train`: byte-level BPE trained on the demonstrations' text. `checkpoint`: the one beside the model."""
    vocab_size: Annotated[int, Field(ge=257)] = 1024
    """`train` only: upper bound of the vocabulary."""
    join_numbers: bool = False
    """`train` only: let a word and the number after it ("countertop 2") become one token."""


class Prompt(Section):
    """How observations become a prompt and an answer becomes an action."""

    format: Literal["transcript", "chat"] = "transcript"
    """`transcript`: the bare text of the game, `> ` before an action. `chat`: the checkpoint's chat template."""
    system: str = ""
    """`chat` only: the system prompt."""
    show_admissible: bool = True
    """`chat` only: list the admissible commands after each observation."""
    end_token: str = "<|im_end|>"
    """`chat` only: the special token that ends an answer."""
    answer: Literal["tagged", "whole"] = "tagged"
    """`chat` only: what of an answer the environment gets. `tagged`: what stands in its last `<action>`. `whole`: all
    that follows the thoughts, line breaks included, for environments that look for the answer themselves."""
    rules: tuple[tuple[str, str], ...] = ()
    """Rewrites of observations, in order: pairs of a regular expression and its replacement."""

    @field_validator("rules")
    @classmethod
    def _patterns_compile(cls, rules: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for pattern, _ in rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return rules


class Rollout(Section):
    """How many episodes, how fresh, how long."""

    source: Literal["turns", "agent"] = "turns"
    """Who plays. `turns`: the trainer, an answer is an action. `agent`: the program of section `agent`."""
    concurrency: Positive = 16
    """Episodes played at once: the number of sandboxes. With `adaptive_concurrency`, the most there may be."""
    adaptive_concurrency: bool = False
    """Play as many episodes at once as keep the engine full, by its measured pressure: grow, trim, cut."""
    episodes_per_sandbox: Positive = 1
    """Episodes played one after the other in a sandbox before it is replaced. More than 1 only where the environment's
    `reset` undoes all that an action can do, as in a text game; it spares a container start per episode."""
    group_size: Positive = 8
    """Episodes of one task that are compared with each other (G)."""
    groups_per_batch: Positive = 8
    """Groups in one learner step. N = groups_per_batch × group_size samples."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Asynchronous ratio: a batch trained at version n holds only episodes initiated by version ≥ n − alpha, and at
    most (1 + alpha)·N are in the buffer and in flight. 0 is synchronous training."""
    order: Literal["opened", "finished"] = "opened"
    """`opened`: batches in the order of starting, nothing becomes stale. `finished`: the first groups to finish."""
    extra_members: Natural = 0
    """Redundant members of each group; the first `group_size` to finish count, the others are cancelled."""
    extra_groups: Natural = 0
    """Redundant groups of each batch; only with `order: finished`."""
    auto: bool = False
    """Tune the run while it goes on, from what it measures: `alpha` (the recipe's is the most it may be; where nothing
    is gained by running ahead it becomes 0 and the learner gets all threads), `extra_members`, `extra_groups` (with
    `order: finished`), and `concurrency` as `adaptive_concurrency` does. Each change is logged with its reason. The
    share of workers that train is only recommended. Without `auto`, all of it is."""
    max_voids_per_group: Positive = 32
    """Lost episodes of one group after which its task is given up."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling in training."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of sampling in training."""
    max_turns: Positive = 50
    """Turns after which an episode is truncated."""
    max_invalid_turns: Natural = 0
    """Turns in a row without a valid action after which an episode of training is truncated: who is stuck in a loop
    rarely gets out, and costs as much as several others. 0: no limit. Evaluation does without."""
    max_tokens_per_turn: Positive = 32
    """Tokens after which an answer is cut."""
    reset_s: Seconds = 60.0
    """Deadline of the environment's reset."""
    step_s: Seconds = 30.0
    """Deadline of one step of the environment."""
    recovery_s: Seconds = 60.0
    """How much longer a reset or a step may take when its sandbox is lost, until the episode is replayed in another."""
    generate_s: Seconds = 300.0
    """Deadline of one answer of the engine; beyond it the run stops."""
    episode_s: Seconds = 1800.0
    """Deadline of a whole episode, which is void beyond it."""


class WarmStart(Section):
    """Imitation of demonstrations before reinforcement learning."""

    demonstrations: Natural = 0
    """Tasks of the training split to demonstrate; 0 leaves the warm start out."""
    split: str = ""
    """Split of the tasks to demonstrate; empty: `env.train_split`. What was demonstrated is half remembered, so
    reinforcement on the same tasks says little about others."""
    method: str = "expert_plan"
    """The environment's call that returns a list of actions solving the present task."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that call."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to `reset` in demonstrations, over those of `env.options`."""
    epochs: Natural = 4
    """Passes over the demonstrations."""
    batch_size: Positive = 16
    """Demonstrations in one step."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate; it falls to a tenth along a cosine."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` learns in fewer steps; see `learner.optimizer`."""
    observation_weight: Share = 0.0
    """Weight of predicting the environment's words, beside 1 for the expert's: a model that starts from random weights
    learns from them to copy names."""
    slips: Annotated[float, Field(ge=0, lt=0.9)] = 0.0
    """Probability that the demonstrator first tries a command that does nothing now. The slip is not imitated, only
    what is done after it: without any, the policy never sees the state its own mistakes lead to (noise injection,
    Laskey et al., arXiv 1703.09327). Needs an environment that tells its admissible commands."""
    plan_s: Seconds = 60.0
    """Deadline of one plan. A task whose plan takes longer is left out."""


class Evaluation(Section):
    """Success rate on held-out tasks."""

    tasks: Natural = 200
    """Number of episodes; tasks repeat, with other seeds, if the split has fewer. 0 leaves evaluation out."""
    every_steps: Natural = 0
    """Also evaluate every so many steps; 0: only before and after reinforcement learning."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of sampling; 0 is greedy."""
    seed: int = 12345
    """Fixes tasks and seeds, so that evaluations can be compared."""


class Training(Section):
    """The loop."""

    steps: Natural = 100
    """Learner steps."""
    time_budget_s: Annotated[float, Field(ge=0)] = 0.0
    """Stop early after so many seconds of reinforcement learning, then evaluate; 0: no limit."""
    seed: int = 0
    """Fixes weights, order of tasks and sampling."""
    threads: Natural = 0
    """Threads of torch; 0 leaves torch's own choice."""
    batch_deadline_s: Seconds = 1800.0
    """The run stops when no batch became ready for this long; nor, in evaluation, an episode ended."""
    step_deadline_s: Seconds = 1800.0
    """The run stops when a learner step, a publication of weights or a checkpoint takes longer."""


class Checkpoint(Section):
    """What survives the process."""

    directory: str = ""
    """Where runs are kept, each in a folder of its own. Empty: `$ROCK_HOME/runs`."""
    every_steps: Positive = 10
    """Steps between checkpoints. The last step is always kept."""
    keep: Positive = 2
    """Number of checkpoints kept. With an event log that of step 0 is kept as well, where a replay begins."""
    event_log_mb: Natural = 1024
    """Upper bound of the event log, MiB: who generated which token under which version and what was trained on, for
    `rock run replay`. The oldest part goes when it is full. 0: no event log."""
    records_mb: Positive = 512
    """Upper bound of `episodes.jsonl`, and of `metrics.jsonl`, MiB each. The oldest part goes when one is full."""


class Recipe(Section):
    """A run, complete."""

    name: str
    """Name of the run, for people."""
    env: Env
    platform: Platform = Platform()
    model: Model = Model()
    tokenizer: Tokenizer = Tokenizer()
    prompt: Prompt = Prompt()
    engine: Engine = Engine()
    learner: Learner = Learner()
    algorithm: Algorithm = Algorithm()
    critic: Critic = Critic()
    rhythm: Rhythm = Rhythm()
    rollout: Rollout = Rollout()
    agent: Agent = Agent()
    warm_start: WarmStart = WarmStart()
    evaluation: Evaluation = Evaluation()
    training: Training = Training()
    checkpoint: Checkpoint = Checkpoint()
    placement: Placement = Placement()
    weights: Weights = Weights()
    loggers: Loggers = Loggers()
    alerts: Alerts = Alerts()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.model.source == "checkpoint" and not self.model.path:
            raise ValueError("model.source is 'checkpoint', so model.path must name one")
        if self.model.source == "new" and self.tokenizer.source == "checkpoint":
            raise ValueError("tokenizer.source is 'checkpoint' but model.source is 'new': there is no checkpoint")
        if self.tokenizer.source == "train" and not self.warm_start.demonstrations:
            raise ValueError("tokenizer.source 'train' needs text: set warm_start.demonstrations")
        if self.model.heads % self.model.kv_heads:
            raise ValueError(f"model.heads={self.model.heads} is no multiple of model.kv_heads={self.model.kv_heads}")
        if self.prompt.format == "chat" and self.tokenizer.source != "checkpoint":
            raise ValueError("prompt.format 'chat' needs tokenizer.source 'checkpoint'")
        if self.platform.mode == "local" and not self.platform.local_entry:
            raise ValueError("platform.mode 'local' needs platform.local_entry")
        if self.rollout.extra_groups and self.rollout.order == "opened":
            raise ValueError(
                "rollout.extra_groups needs rollout.order 'finished': in the order of opening all are kept"
            )
        if (self.rollout.source == "agent") != bool(self.agent.command or self.agent.entry):
            raise ValueError("rollout.source 'agent' and a program (agent.command or agent.entry) need each other")
        if (problem := misplaced(self.placement, self.learner, self.engine, self.algorithm)) is not None:
            raise ValueError(problem)
        members = self.rollout.group_size
        if (problem := contradiction(self.algorithm, self.critic, self.rhythm, group_size=members)) is not None:
            raise ValueError(problem)
        return self
