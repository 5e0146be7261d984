//! End-to-end encryption is not there, and nothing goes out in clear instead. Alone in its
//! process: what it checks holds for all of one.

use libwebrtc::audio_source::native::NativeAudioSource;
use libwebrtc::native::frame_cryptor::{
    DataPacketCryptor, EncryptionAlgorithm, KeyDerivationAlgorithm, KeyProvider, KeyProviderOptions,
};
use libwebrtc::peer_connection_factory::native::PeerConnectionFactoryExt;
use libwebrtc::prelude::*;

#[tokio::test]
async fn a_room_that_asks_for_encryption_publishes_nothing() {
    let keys = KeyProvider::new(KeyProviderOptions {
        shared_key: true,
        ratchet_window_size: 16,
        ratchet_salt: b"salt".to_vec(),
        failure_tolerance: -1,
        key_ring_size: 16,
        key_derivation_algorithm: KeyDerivationAlgorithm::PBKDF2,
    });
    assert!(!keys.set_shared_key(0, b"secret".to_vec()));
    let cryptor = DataPacketCryptor::new(EncryptionAlgorithm::AesGcm, keys);
    assert!(cryptor.encrypt("me", 0, b"clear text").is_err());

    let factory = PeerConnectionFactory::default();
    let connection = factory.create_peer_connection(RtcConfiguration::default()).unwrap();
    let source = NativeAudioSource::new(AudioSourceOptions::default(), 48_000, 1, 100);
    let track = factory.create_audio_track("track", source);
    let init = RtpTransceiverInit {
        direction: RtpTransceiverDirection::SendOnly,
        stream_ids: Vec::new(),
        send_encodings: Vec::new(),
    };
    let error = connection.add_transceiver(track.clone().into(), init.clone()).unwrap_err();
    assert!(error.message.contains("encryption"), "{error}");
    assert!(connection.transceivers().is_empty());

    drop(cryptor);
    connection.add_transceiver(track.into(), init).unwrap();
}
