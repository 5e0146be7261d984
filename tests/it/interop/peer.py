"""The other side of the interop tests, on LiveKit's Python SDK.

Usage: peer.py URL TOKEN KEY [video]. Joins, plays a tone of 440 Hz, says back what it gets on the
topic `ping` on the topic `pong`, and prints a line of JSON for what it hears. KEY may be empty.
"""

import asyncio
import json
import math
import sys
from array import array

from livekit import rtc

RATE = 48_000
HZ = 440.0
HEARD_HZ = 600.0
WIDTH, HEIGHT = 320, 180


def say(**event):
    print(json.dumps(event), flush=True)


def share(samples, hz):
    """Share of the energy that is at `hz`."""
    re = im = whole = 0.0
    for i, sample in enumerate(samples):
        phase = 2 * math.pi * hz * i / RATE
        re += sample * math.cos(phase)
        im += sample * math.sin(phase)
        whole += sample * sample
    return 2 * (re * re + im * im) / (whole * len(samples)) if whole else 0.0


async def play(source):
    at = 0
    while True:
        samples = array(
            "h",
            (int(8000 * math.sin(2 * math.pi * HZ * (at + i) / RATE)) for i in range(480)),
        )
        at += 480
        await source.capture_frame(rtc.AudioFrame(samples.tobytes(), RATE, 1, 480))


async def show(source):
    at = 0
    while True:
        luma = bytearray(WIDTH * HEIGHT)
        for y in range(HEIGHT):
            shade = (y + 4 * at) % 256
            luma[y * WIDTH : (y + 1) * WIDTH] = bytes([shade]) * WIDTH
        data = bytes(luma) + bytes([128]) * (WIDTH * HEIGHT // 2)
        source.capture_frame(rtc.VideoFrame(WIDTH, HEIGHT, rtc.VideoBufferType.I420, data))
        at += 1
        await asyncio.sleep(1 / 15)


async def listen(track):
    heard = array("h")
    stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1)
    async for event in stream:
        heard.extend(event.frame.data)
        if len(heard) >= RATE // 4:
            say(event="heard", share=share(heard[: RATE // 4], HEARD_HZ))
            heard = array("h")


async def main(url, token, key, video):
    tasks = set()

    def spawn(work):
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    room = rtc.Room()

    @room.on("track_subscribed")
    def _(track, _publication, _participant):
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            spawn(listen(track))

    @room.on("data_received")
    def _(packet):
        if packet.topic == "ping":
            spawn(room.local_participant.publish_data(packet.data, topic="pong"))

    async def answer(reader):
        await room.local_participant.send_text(await reader.read_all(), topic="pong")

    room.register_text_stream_handler("ping", lambda reader, _who: spawn(answer(reader)))

    options = rtc.RoomOptions()
    if key:
        keys = rtc.KeyProviderOptions(shared_key=key.encode())
        options.encryption = rtc.E2EEOptions(key_provider_options=keys)
    await room.connect(url, token, options)

    source = rtc.AudioSource(RATE, 1, 100)
    track = rtc.LocalAudioTrack.create_audio_track("tone", source)
    spawn(play(source))
    publish = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    await room.local_participant.publish_track(track, publish)
    if video:
        source = rtc.VideoSource(WIDTH, HEIGHT)
        track = rtc.LocalVideoTrack.create_video_track("pattern", source)
        spawn(show(source))
        publish = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_CAMERA,
            video_codec=rtc.VideoCodec.VP8,
            simulcast=False,
        )
        await room.local_participant.publish_track(track, publish)
    say(event="joined")
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], "video" in sys.argv[4:]))
