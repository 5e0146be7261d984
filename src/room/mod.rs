//! One room: join, hear, speak, text streams, attributes.
