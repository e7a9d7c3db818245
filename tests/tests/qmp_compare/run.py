"""Runs a script of QMP messages through the `qemu.qmp` client and prints what came back, a JSON value per line.

Usage: run.py SOCKET SCRIPT. A line of the script is a message to send, or {"await": {...}}: an event whose data has these
members, waited for, or {"run": [...]}: a command of the host. Empty lines and lines that begin with # are skipped.
"""

import asyncio
import json
import subprocess
import sys

from qemu.qmp import EventListener, QMPClient

AWAIT_SECONDS = 20


class Seen:
    """Every event so far, and who waits for the next."""

    def __init__(self):
        self.events = []
        self.taken = 0
        self.more = asyncio.Condition()

    async def listen(self, listener):
        async for event in listener:
            async with self.more:
                self.events.append({key: event[key] for key in event if key != "timestamp"})
                self.more.notify_all()

    async def wait_for(self, wanted):
        def found():
            while self.taken < len(self.events):
                event = self.events[self.taken]
                self.taken += 1
                data = {"event": event["event"], **event.get("data", {})}
                if all(data.get(key) == value for key, value in wanted.items()):
                    return True
            return False

        async with self.more:
            await asyncio.wait_for(self.more.wait_for(found), AWAIT_SECONDS)


async def step(client, seen, line):
    message = json.loads(line)
    if "await" in message:
        await seen.wait_for(message["await"])
    elif "run" in message:
        subprocess.run(message["run"], check=True, stdout=subprocess.DEVNULL)
    else:
        reply = await client._raw(message, assign_id="id" not in message)
        if "id" not in message:
            del reply["id"]
        print(json.dumps({"sent": message, "reply": dict(reply)}))


async def main(socket, script):
    client = QMPClient("compare")
    seen = Seen()
    listener = EventListener()
    client.register_listener(listener)
    await client.connect(socket)
    print(json.dumps({"greeting": client.greeting._asdict()}))
    task = asyncio.create_task(seen.listen(listener))
    with open(script, encoding="utf-8") as lines:
        for line in map(str.strip, lines):
            if line and not line.startswith("#"):
                await step(client, seen, line)
    task.cancel()
    await client.disconnect()
    print(json.dumps({"events": seen.events}))


asyncio.run(main(*sys.argv[1:]))
