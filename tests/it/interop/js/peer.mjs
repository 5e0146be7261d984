// The other side of the interop tests, on LiveKit's SDK for Node.
//
// Usage: peer.mjs URL TOKEN KEY. Joins, plays a tone of 440 Hz, says back what it gets on the topic
// `ping` on the topic `pong`, and prints a line of JSON for what it hears. KEY may be empty.

import {
  AudioFrame,
  AudioSource,
  AudioStream,
  EncryptionType,
  LocalAudioTrack,
  Room,
  RoomEvent,
  TrackKind,
  TrackPublishOptions,
  TrackSource,
} from '@livekit/rtc-node';

const RATE = 48_000;
const HZ = 440;
const HEARD_HZ = 600;
const [url, token, key] = process.argv.slice(2);

const say = (event) => console.log(JSON.stringify(event));

/** Share of the energy that is at `hz`. */
function share(samples, hz) {
  let [re, im, whole] = [0, 0, 0];
  samples.forEach((sample, i) => {
    const phase = (2 * Math.PI * hz * i) / RATE;
    re += sample * Math.cos(phase);
    im += sample * Math.sin(phase);
    whole += sample * sample;
  });
  return whole ? (2 * (re * re + im * im)) / (whole * samples.length) : 0;
}

async function play(source) {
  for (let at = 0; ; at += 480) {
    const samples = Int16Array.from({ length: 480 }, (_, i) =>
      Math.trunc(8000 * Math.sin((2 * Math.PI * HZ * (at + i)) / RATE)),
    );
    await source.captureFrame(new AudioFrame(samples, RATE, 1, 480));
  }
}

async function listen(track) {
  let heard = [];
  for await (const frame of new AudioStream(track, RATE, 1)) {
    heard.push(...frame.data);
    if (heard.length >= RATE / 4) {
      say({ event: 'heard', share: share(heard.slice(0, RATE / 4), HEARD_HZ) });
      heard = [];
    }
  }
}

const room = new Room();
room.on(RoomEvent.TrackSubscribed, (track) => {
  if (track.kind === TrackKind.KIND_AUDIO) listen(track);
});
room.on(RoomEvent.DataReceived, (payload, _participant, _kind, topic) => {
  if (topic === 'ping') room.localParticipant.publishData(payload, { reliable: true, topic: 'pong' });
});
room.registerTextStreamHandler('ping', async (reader) => {
  await room.localParticipant.sendText(await reader.readAll(), { topic: 'pong' });
});

const encryption = key && {
  encryptionType: EncryptionType.GCM,
  keyProviderOptions: {
    sharedKey: new TextEncoder().encode(key),
    ratchetSalt: new TextEncoder().encode('LKFrameEncryptionKey'),
    ratchetWindowSize: 16,
    failureTolerance: -1,
    keyRingSize: 16,
  },
};
const options = { autoSubscribe: true, dynacast: false };
await room.connect(url, token, encryption ? { ...options, encryption } : options);

const source = new AudioSource(RATE, 1, 100);
const publish = new TrackPublishOptions({ source: TrackSource.SOURCE_MICROPHONE });
await room.localParticipant.publishTrack(LocalAudioTrack.createAudioTrack('tone', source), publish);
play(source);
say({ event: 'joined' });
