//! Server-sent events (WHATWG HTML section 9.2), cut out of a stream of bytes.
//!
//! Lines end with LF or CRLF; a lone CR, which the standard allows too, no provider sends.

/// Longest event, in bytes.
const MAX_EVENT: usize = 1 << 20;

/// One event; `event` is empty where the server names none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SseEvent {
    pub event: String,
    pub data: String,
}

/// An event longer than any that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is too long")]
pub struct TooLong;

/// Give it bytes as they come, take events out.
#[derive(Debug, Default)]
pub struct SseReader {
    buffer: Vec<u8>,
    /// Where the next line begins.
    at: usize,
    current: SseEvent,
    has_data: bool,
}

impl SseReader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event.
    pub fn poll(&mut self) -> Result<Option<SseEvent>, TooLong> {
        while let Some(length) = self.buffer[self.at..].iter().position(|byte| *byte == b'\n') {
            let line = &self.buffer[self.at..self.at + length];
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
            self.at += length + 1;
            if line.is_empty() {
                let event = std::mem::take(&mut self.current);
                if std::mem::take(&mut self.has_data) {
                    return Ok(Some(event));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.current.event),
                "data" => {
                    if self.has_data {
                        self.current.data.push('\n');
                    }
                    self.has_data = true;
                    self.current.data.push_str(value);
                }
                // Comments, ids, retry times.
                _ => {}
            }
            if self.current.data.len() > MAX_EVENT {
                return Err(TooLong);
            }
        }
        if self.buffer.len() - self.at > MAX_EVENT { Err(TooLong) } else { Ok(None) }
    }

    /// The event that the stream ended in the middle of: some servers leave out the last empty line.
    pub fn rest(&mut self) -> Option<SseEvent> {
        self.push(b"\n\n");
        self.poll().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let mut reader = SseReader::default();
        let mut events = Vec::new();
        for chunk in chunks {
            reader.push(chunk);
            while let Some(SseEvent { event, data }) = reader.poll().unwrap() {
                events.push((event, data));
            }
        }
        events
    }

    fn pair(event: &str, data: &str) -> (String, String) {
        (event.into(), data.into())
    }

    #[test]
    fn events_have_a_name_and_joined_data() {
        let text =
            b": hi\r\nevent: ping\r\ndata: {}\r\n\r\ndata:a\ndata: b\nid: 3\n\n\nevent: x\n\n";
        assert_eq!(read(&[text]), [pair("ping", "{}"), pair("", "a\nb")]);
    }

    #[test]
    fn the_last_event_needs_no_empty_line() {
        let mut reader = SseReader::default();
        reader.push(b"data: [DONE]");
        assert_eq!(reader.poll(), Ok(None));
        assert_eq!(reader.rest().unwrap().data, "[DONE]");
        assert_eq!(reader.rest(), None);
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut reader = SseReader::default();
        reader.push(&vec![b'x'; MAX_EVENT + 1]);
        assert_eq!(reader.poll(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_stream_is_cut(
            text in "(data: [a-zé]{0,5}\r?\n|event: [a-z]{0,3}\n|:[a-z]\n|\r?\n){0,12}",
            cuts in proptest::collection::vec(0_usize..200, 0..5),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(&chunks), read(&[bytes]));
        }

        #[test]
        fn no_bytes_can_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = SseReader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.poll() {}
            let _ = reader.rest();
        }
    }
}
