//! A room without a server: two engine peers on 127.0.0.1, one way each between caller and agent.

use std::time::Duration;

use libwebrtc::{
    audio_source::native::NativeAudioSource,
    peer_connection::{AnswerOptions, OfferOptions, TrackEvent},
    peer_connection_factory::{RtcConfiguration, native::PeerConnectionFactoryExt},
    prelude::{
        MediaStreamTrack, PeerConnection, PeerConnectionFactory, PeerConnectionState,
        RtcAudioTrack, RtcError, RtpTransceiverDirection, RtpTransceiverInit,
    },
};
use tokio::{sync::mpsc, time::timeout};

/// How long the peers may take to find each other.
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    #[error("the loopback peers cannot negotiate: {0:?}")]
    Negotiation(RtcError),
    #[error("the loopback peers did not connect within {} s", CONNECT.as_secs())]
    Timeout,
}

impl From<RtcError> for LoopbackError {
    fn from(error: RtcError) -> Self {
        Self::Negotiation(error)
    }
}

/// One direction of a call: what is captured at the source is heard on the track.
#[derive(Debug)]
pub struct OneWay {
    pub track: RtcAudioTrack,
    sender: PeerConnection,
    receiver: PeerConnection,
}

impl OneWay {
    /// Connects `source` to a receiving peer: ICE, DTLS, SRTP and Opus as in a room.
    pub async fn connect(
        factory: &PeerConnectionFactory,
        label: &str,
        source: NativeAudioSource,
    ) -> Result<Self, LoopbackError> {
        let sender = factory.create_peer_connection(RtcConfiguration::default())?;
        let receiver = factory.create_peer_connection(RtcConfiguration::default())?;
        trickle(&sender, &receiver);
        trickle(&receiver, &sender);
        let (heard_sender, mut heard) = mpsc::channel(1);
        receiver.on_track(Some(Box::new(move |event: TrackEvent| {
            if let MediaStreamTrack::Audio(track) = event.track {
                let _ = heard_sender.try_send(track);
            }
        })));
        let (state_sender, mut states) = mpsc::channel(8);
        sender.on_connection_state_change(Some(Box::new(move |state| {
            let _ = state_sender.try_send(state);
        })));

        let track = factory.create_audio_track(label, source);
        let init = RtpTransceiverInit {
            direction: RtpTransceiverDirection::SendOnly,
            stream_ids: vec![label.to_owned()],
            send_encodings: Vec::new(),
        };
        sender.add_transceiver(MediaStreamTrack::Audio(track), init)?;
        let offer = sender.create_offer(OfferOptions::default()).await?;
        sender.set_local_description(offer.clone()).await?;
        receiver.set_remote_description(offer).await?;
        let answer = receiver.create_answer(AnswerOptions::default()).await?;
        receiver.set_local_description(answer.clone()).await?;
        sender.set_remote_description(answer).await?;

        let connected = async {
            while let Some(state) = states.recv().await {
                if state == PeerConnectionState::Connected {
                    break;
                }
            }
            heard.recv().await
        };
        match timeout(CONNECT, connected).await {
            Ok(Some(track)) => Ok(Self { track, sender, receiver }),
            _ => Err(LoopbackError::Timeout),
        }
    }
}

impl Drop for OneWay {
    fn drop(&mut self) {
        self.sender.close();
        self.receiver.close();
    }
}

/// Candidates of one peer become known to the other.
fn trickle(from: &PeerConnection, to: &PeerConnection) {
    let to = to.clone();
    let runtime = tokio::runtime::Handle::current();
    from.on_ice_candidate(Some(Box::new(move |candidate| {
        let to = to.clone();
        runtime.spawn(async move {
            let _ = to.add_ice_candidate(candidate).await;
        });
    })));
}
