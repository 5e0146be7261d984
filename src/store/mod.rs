//! Where sessions and transcripts live.
