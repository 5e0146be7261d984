//! The companion HTTP control endpoint: sessions, tokens, transcripts, ingest.
