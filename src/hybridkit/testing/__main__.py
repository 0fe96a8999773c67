"""`python -m hybridkit.testing telegram`: a fake Telegram for a bot in another process, until Ctrl-C."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from hybridkit.testing._telegram._fake import DEFAULT_TOKEN, FakeTelegram


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code: 0 after a signal, 1 when the port can't be used."""
    parser = argparse.ArgumentParser(prog="python -m hybridkit.testing", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    telegram = commands.add_parser(
        "telegram",
        help="run a fake Telegram and print the settings of a bot for it",
        description="Run a fake Telegram on 127.0.0.1, print the settings of a bot for it, and wait for Ctrl-C. "
        "POST /control/updates, /control/redeliver, /control/faults and /control/blocked drive it; GET /control/state "
        "tells what the bot has sent.",
    )
    telegram.add_argument("--port", type=int, default=8081, help="8081 by default; 0 for any that is free")
    telegram.add_argument(
        "--token", default=DEFAULT_TOKEN, help=f"the only token it accepts; {DEFAULT_TOKEN} by default"
    )
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(FakeTelegram(token=options.token, port=options.port)))
    except OSError as error:
        print(f"fake Telegram: {error}", file=sys.stderr)  # noqa: T201 - a program speaks by printing
        return 1
    return 0


async def _serve(telegram: FakeTelegram) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with telegram:
        token = DEFAULT_TOKEN if telegram.token == DEFAULT_TOKEN else "the one that was given"
        lines = [f"TELEGRAM_API_URL={telegram.url}", f"BOT_TOKEN={token}", "", "Ctrl-C stops it."]
        print("\n".join(lines), flush=True)  # noqa: T201 - a program speaks by printing
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
