//! A WAV through the whole conversation, without any server.
