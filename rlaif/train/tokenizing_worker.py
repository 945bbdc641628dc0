"""A process that tokenizes for another one, which `rlaif.train.tokenizing` starts: it leaves when its input ends.

Its first message is the tokenizer; each further one is a chunk, and gets a reply.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress

from rlaif.engines.chat import Chat
from rlaif.train.tokenizing import make, pack, received, sent


def main() -> None:
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    if (head := received(requests)) is None:
        return
    tokenizer, file, ends = pickle.loads(head)  # noqa: S301 - of our own parent
    chat = Chat(tokenizer, file, ends=ends, limit=None)
    while (request := received(requests)) is not None:
        body, numbers = pickle.loads(request)  # noqa: S301
        made = make(chat, body, numbers)
        sent(replies, pickle.dumps((pack(made.pieces), made.refusal)))


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody waits for a reply any more
        main()
