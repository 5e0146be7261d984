//! Streams of remote audio.

/// Streams read by the application.
pub mod native {
    use std::fmt::{self, Debug};
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use tokio_stream::Stream;

    use crate::audio_frame::AudioFrame;
    use crate::audio_track::{Kind, RtcAudioTrack};
    use crate::engine::sink::{Listening, Sink};

    const DEFAULT_QUEUE_FRAMES: usize = 10;

    /// Options of a stream.
    #[derive(Clone, Debug, Default)]
    pub struct NativeAudioStreamOptions {
        /// Frames of 10 ms that may wait for the reader; beyond, the oldest is dropped. `None`
        /// stands for 10, `Some(0)` for the most there is: 3,000, or 30 s.
        pub queue_size_frames: Option<usize>,
    }

    /// Frames of exactly 10 ms, as many as there is time from the first packet on, silence included;
    /// those of one packet come together.
    ///
    /// It ends when the remote stops publishing, when the connection is closed, and at once for a
    /// format that Opus does not decode to or a track that is not a remote one.
    pub struct NativeAudioStream {
        track: RtcAudioTrack,
        sink: Option<Arc<Sink>>,
    }

    impl Debug for NativeAudioStream {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("NativeAudioStream").field("track", &self.track).finish_non_exhaustive()
        }
    }

    impl NativeAudioStream {
        /// Listens at 8, 12, 16, 24 or 48 kHz with one or two channels, decoded to directly.
        pub fn new(audio_track: RtcAudioTrack, sample_rate: i32, num_channels: i32) -> Self {
            let options = NativeAudioStreamOptions::default();
            Self::with_options(audio_track, sample_rate, num_channels, options)
        }

        /// Like [`Self::new`] with another queue.
        pub fn with_options(
            audio_track: RtcAudioTrack,
            sample_rate: i32,
            num_channels: i32,
            options: NativeAudioStreamOptions,
        ) -> Self {
            let queue = match options.queue_size_frames {
                None => Some(DEFAULT_QUEUE_FRAMES),
                Some(0) => None,
                bounded => bounded,
            };
            Self::attach(audio_track, sample_rate, num_channels, queue, false)
        }

        /// Listens without a pace, for machines: frames come as soon as their packet does, if it is
        /// in order, and in a pause up to four at once. A second has as many as by [`Self::new`],
        /// and what is missing is waited for as long. Up to 3,000 frames wait for the reader.
        pub fn unpaced(audio_track: RtcAudioTrack, sample_rate: i32, num_channels: i32) -> Self {
            Self::attach(audio_track, sample_rate, num_channels, None, true)
        }

        /// Of [`Self::unpaced`]: in batches, frames come every 60 ms, six at once, instead of every
        /// 20 ms, for a third of the wake-ups. For a listener that waits for nothing just then.
        pub fn set_batching(&self, batching: bool) {
            if let Some(sink) = &self.sink {
                sink.set_batching(batching);
            }
        }

        fn attach(
            track: RtcAudioTrack,
            sample_rate: i32,
            num_channels: i32,
            queue: Option<usize>,
            unpaced: bool,
        ) -> Self {
            let listening = Listening {
                sample_rate: u32::try_from(sample_rate).unwrap_or_default(),
                channels: u32::try_from(num_channels).unwrap_or_default(),
                queue,
                unpaced,
            };
            let sink = attach(&track, listening);
            let sink = sink.map_err(|error| log::error!("no audio stream: {error}")).ok();
            Self { track, sink }
        }

        /// The track it listens to.
        pub fn track(&self) -> RtcAudioTrack {
            self.track.clone()
        }

        /// Stops listening. What waits may still be read.
        pub fn close(&mut self) {
            if let Some(sink) = &self.sink {
                sink.close();
            }
        }

        /// Frames dropped because the reader was too slow.
        pub fn dropped_frames(&self) -> u64 {
            self.sink.as_ref().map_or(0, |sink| sink.dropped())
        }
    }

    fn attach(track: &RtcAudioTrack, listening: Listening) -> Result<Arc<Sink>, String> {
        let Kind::Remote(remote) = &track.kind else {
            return Err("only a remote track can be listened to".to_owned());
        };
        let runtime = crate::engine::runtime().map_err(|error| error.to_string())?;
        let _guard = runtime.enter();
        Sink::attach(remote, listening).map_err(|error| error.to_string())
    }

    impl Drop for NativeAudioStream {
        fn drop(&mut self) {
            self.close();
        }
    }

    impl Stream for NativeAudioStream {
        type Item = AudioFrame<'static>;

        fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            match &self.sink {
                Some(sink) => sink.poll_next(context),
                None => Poll::Ready(None),
            }
        }
    }
}
