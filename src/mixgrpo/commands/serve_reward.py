"""`mixgrpo serve-reward`: rewards for runs on other machines, or in other environments (protocol 1)."""

import argparse
import json
import logging
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixgrpo.commands.common import Parser, above_zero, at_least_one
from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    from mixgrpo.rewards import Reward
    from mixgrpo.rewards.server import RewardServer


def run(args: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    found = make_parser().read(args)
    from mixgrpo.rewards.client import read_token

    token = read_token("--token-env", found.token_env)
    rewards = _make_rewards(found.rewards, _read_options(found.options_json))
    from mixgrpo.rewards.server import Limits, RewardServer

    limits = Limits(body=found.max_request_mb * 2**20, requests=found.max_requests, seconds=found.timeout)
    try:
        server = RewardServer(found.host, found.port, rewards, token=token, limits=limits)
    except OSError as error:
        where = f"{found.host} port {found.port}"
        raise ConfigError(
            f"cannot listen on {where}: {error.strerror}. Choose others with --host and --port"
        ) from error
    _log_to_terminal()
    print(_announcement(server, found.token_env), flush=True)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as service managers and containers end a program
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopping: answering what is in progress; Ctrl-C again ends at once", flush=True)
    finally:
        server.close()
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "serve-reward",
        "Serve rewards over HTTP, for the reward `http` of a run elsewhere. The protocol is in docs/rewards.md.",
    )
    parser.add_argument(
        "rewards",
        metavar="REWARD",
        nargs="+",
        help="a built-in reward or an import path package.module:factory; NAME=REWARD gives it another name",
    )
    parser.add_argument(
        "--options-json",
        metavar="JSON",
        default="{}",
        help="""options of the rewards by name, such as '{"jpeg": {"quality": 90}}'""",
    )
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", metavar="N", type=_port, default=8000, help="port, 0 for a free one (default: 8000)")
    parser.add_argument(
        "--token-env", metavar="NAME", default="", help="environment variable with a token that clients must send"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=above_zero,
        default=300.0,
        help="time for scoring the images of a request, once it is their turn (default: 300)",
    )
    parser.add_argument(
        "--max-request-mb", metavar="N", type=at_least_one, default=64, help="largest request (default: 64 MiB)"
    )
    parser.add_argument(
        "--max-requests", metavar="N", type=at_least_one, default=32, help="requests at the same time (default: 32)"
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def _read_options(text: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--options-json is not JSON: {error}") from error
    if not isinstance(options, dict) or not all(isinstance(values, dict) for values in options.values()):
        raise ConfigError("""--options-json must hold options by reward, such as '{"jpeg": {"quality": 90}}'""")
    return options


def _make_rewards(texts: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> "dict[str, Reward]":
    from mixgrpo.rewards import make_reward

    uses: dict[str, str] = {}
    for text in texts:
        name, _, use = text.rpartition("=")
        name = name or use.rpartition(":")[2]
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ConfigError(f"{text!r} is neither a reward nor NAME=REWARD with a name of letters, digits and _ . -")
        if name in uses:
            raise ConfigError(f"two rewards are called {name!r}; give one another name: other={use}")
        uses[name] = use
    if unknown := [name for name in options if name not in uses]:
        raise ConfigError(f"--options-json has options for {unknown[0]!r}, but the rewards are {', '.join(uses)}")
    return {name: make_reward(use, options.get(name)) for name, use in uses.items()}


def _log_to_terminal() -> None:
    """Show on stderr what the server has to say: a line per request, and what could not be scored."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("mixgrpo.rewards.server")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)


def _announcement(server: "RewardServer", token_env: str) -> str:
    token = f', token_env = "{token_env}"' if token_env else ""
    lines = [f"serving {', '.join(server.rewards)} on {server.url}; Ctrl-C ends it. In the config of a run:"]
    for name in server.rewards:
        lines += [
            "",
            "[[rewards]]",
            f'name = "{name}"',
            'use = "http"',
            f'options = {{ url = "{server.url}", reward = "{name}"{token} }}',
        ]
    if not token_env and server.server_name not in ("127.0.0.1", "::1", "localhost"):
        lines += ["", "Whoever reaches this port can have images scored: there is no token (--token-env)."]
    if server.server_name in ("0.0.0.0", "::"):
        lines += ["", "On another machine, write this one's name or address into the url."]
    return "\n".join(lines)
