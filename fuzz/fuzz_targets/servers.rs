#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rtc_audio::fuzzing::servers(data));
