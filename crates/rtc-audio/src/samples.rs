//! Samples between the decoder and the listener: what is to be played, and a little of what was.
//!
//! Time is stretched by whole periods of the sound (waveform-similarity overlap-add): jumping
//! ahead leaves out a period, jumping back plays one twice, with a cross-fade between two places
//! that look alike, so that neither is heard. The same periods, repeated and fading, stand in
//! while nothing has come. No place ever jumps: every seam is a cross-fade.

use std::ops::Range;

/// The longest period, of a deep voice (66 Hz), in samples a second divided by this.
const LONGEST_PERIOD: usize = 66;
/// The shortest step of time: 2.5 ms.
const SHORTEST_PERIOD: usize = 400;
/// Length over which places are compared, and cross-faded for a jump: 5 ms.
const OVERLAP: usize = 200;
/// Cross-fade inside the repeated period, and out of silence: 2 ms.
const SEAM: usize = 500;
/// Cross-fade back from made-up sound: 10 ms, since a decoder needs a while to recover itself.
const BACK: usize = 100;
/// Where sound is made up, it stays as loud for so long (20 ms) ...
const STEADY: usize = 50;
/// ... and is silent after so long (120 ms).
const FADED_NUM: usize = 3;
const FADED_DEN: usize = 25;
/// What was played is kept for so long (50 ms) to find periods in.
const HISTORY: usize = 20;
/// Mean square of samples that nobody hears: -55 dBov.
const QUIET: f64 = 3_400.0;

/// Likenesses so close are the same.
const SAME: f64 = 0.05;
/// How alike two places must be for a jump between them, 1 being the same.
pub(crate) const ALIKE: f64 = 0.9;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Samples {
    /// Interleaved: first what was played, from `head` on what is to be.
    data: Vec<i16>,
    head: usize,
    rate: usize,
    channels: usize,
    made_up: Option<MadeUp>,
    /// A period of the sound, ready to be repeated; interleaved.
    period: Vec<i16>,
}

/// Sound that is being made up at the end.
#[derive(Debug, Clone, Copy)]
struct MadeUp {
    /// Frames made so far.
    frames: usize,
    /// Place in the period.
    at: usize,
    /// There was silence before: nothing to repeat.
    silent: bool,
}

impl Samples {
    /// For `rate` in Hz and so many channels; `longest` frames may be pushed at once.
    pub(crate) fn new(rate: u32, channels: usize, longest: usize) -> Self {
        let rate = rate as usize;
        let frames = rate / HISTORY * 2 + longest * 3;
        Self {
            data: Vec::with_capacity(frames * channels),
            head: 0,
            rate,
            channels,
            made_up: None,
            period: Vec::with_capacity((rate / LONGEST_PERIOD + 1) * channels),
        }
    }

    /// Frames (samples of each channel) to be played.
    pub(crate) fn len(&self) -> usize {
        (self.data.len() - self.head) / self.channels
    }

    /// Frames needed to be jumped over by `most` frames.
    pub(crate) fn needed_to_leave_out(&self, most: usize) -> usize {
        most + self.rate / OVERLAP
    }

    /// Appends what was decoded. After made-up sound, goes over to it where it fits best.
    pub(crate) fn push(&mut self, decoded: &[i16]) {
        self.forget();
        if let Some(made_up) = self.made_up.take() {
            self.merge(made_up, decoded);
        } else {
            self.data.extend_from_slice(decoded);
        }
    }

    /// Appends so many frames of sound that continues what is there and fades to silence; gives
    /// how many of them are not silent.
    pub(crate) fn make_up(&mut self, frames: usize) -> usize {
        self.forget();
        let mut made_up = match self.made_up {
            Some(made_up) => made_up,
            None => self.begin_making_up(),
        };
        let audible = self.extend_made_up(&mut made_up, frames);
        self.made_up = Some(made_up);
        audible
    }

    /// Takes what is next to be played.
    pub(crate) fn pull(&mut self, out: &mut [i16]) {
        let end = (self.head + out.len()).min(self.data.len());
        let (now, rest) = out.split_at_mut(end - self.head);
        now.copy_from_slice(&self.data[self.head..end]);
        rest.fill(0);
        self.head = end;
    }

    /// Leaves out a period of at most `most` frames from what is next, if the two places are at
    /// least so `alike` (1 is the same) or too quiet to matter. Gives the frames left out.
    pub(crate) fn leave_out(&mut self, most: usize, alike: f64) -> Option<usize> {
        let overlap = self.rate / OVERLAP;
        let most = most.min(self.rate / LONGEST_PERIOD).min(self.len().checked_sub(overlap)?);
        let here = self.head / self.channels;
        let least = self.rate / SHORTEST_PERIOD;
        let found = self.most_alike(here, overlap, here + least..here + most + 1)?;
        if found.alike < alike && !found.quiet {
            return None;
        }
        self.cross_fade(here, found.at, overlap);
        self.head = found.at * self.channels;
        Some(found.at - here)
    }

    /// Plays the last period, of at most `most` frames, once more; otherwise as
    /// [`Self::leave_out`].
    pub(crate) fn repeat(&mut self, most: usize, alike: f64) -> Option<usize> {
        let overlap = self.rate / OVERLAP;
        let here = self.head / self.channels;
        let most = most.min(self.rate / LONGEST_PERIOD).min(here);
        let least = self.rate / SHORTEST_PERIOD;
        if self.len() < overlap || most < least {
            return None;
        }
        let found = self.most_alike(here, overlap, here - most..here - least + 1)?;
        if found.alike < alike && !found.quiet {
            return None;
        }
        self.cross_fade(here, found.at, overlap);
        self.head = found.at * self.channels;
        Some(here - found.at)
    }

    // ---------------------------------------------------------------- making up

    fn begin_making_up(&mut self) -> MadeUp {
        let end = self.data.len() / self.channels;
        let (longest, shortest) = (self.rate / LONGEST_PERIOD, self.rate / SHORTEST_PERIOD);
        let (overlap, seam) = (self.rate / OVERLAP, self.rate / SEAM);
        let nothing = MadeUp { frames: 0, at: 0, silent: true };
        // The end is compared with what came a period before, whose beginning needs a seam's
        // length more.
        let Some(template) = end.checked_sub(overlap) else { return nothing };
        let first = template.saturating_sub(longest).max(seam);
        if first + shortest > template {
            return nothing;
        }
        let candidates = first..template - shortest + 1;
        let Some(found) = self.most_alike(template, overlap, candidates) else { return nothing };
        let length = template - found.at;
        let start = end - length;
        self.period.clear();
        self.period.extend_from_slice(&self.data[start * self.channels..]);
        // Its end goes over to what came before its beginning, so that it can be repeated.
        let seam = seam.min(start).min(length);
        for i in 0..seam {
            for channel in 0..self.channels {
                let at = (length - seam + i) * self.channels + channel;
                let before = self.data[(start - seam + i) * self.channels + channel];
                self.period[at] = blend(self.period[at], before, i + 1, seam + 1);
            }
        }
        MadeUp { frames: 0, at: 0, silent: false }
    }

    fn extend_made_up(&mut self, made_up: &mut MadeUp, frames: usize) -> usize {
        let (steady, faded) = (self.rate / STEADY, self.rate * FADED_NUM / FADED_DEN);
        let seam = self.rate / SEAM;
        let length = self.period.len() / self.channels;
        let mut audible = 0;
        for _ in 0..frames {
            if made_up.silent || made_up.frames >= faded || length == 0 {
                // Whatever was there last fades over the seam.
                let left = seam.saturating_sub(made_up.frames);
                for _ in 0..self.channels {
                    let last = self.data.len().checked_sub(self.channels);
                    let last = last.map_or(0, |at| i32::from(self.data[at]));
                    let next = if made_up.silent && left > 0 {
                        last * (left as i32 - 1) / left as i32
                    } else {
                        0
                    };
                    self.data.push(next as i16);
                }
            } else {
                audible += 1;
                let gain = faded - made_up.frames.max(steady);
                for channel in 0..self.channels {
                    let sample = i64::from(self.period[made_up.at * self.channels + channel]);
                    let sample = self.join(sample, made_up.frames, channel, length);
                    self.data.push((sample * gain as i64 / (faded - steady) as i64) as i16);
                }
                made_up.at = (made_up.at + 1) % length;
            }
            made_up.frames += 1;
        }
        audible
    }

    /// In the first milliseconds, takes the difference between where the sound was and where the
    /// period begins down to nothing.
    fn join(&self, sample: i64, frame: usize, channel: usize, length: usize) -> i64 {
        let seam = self.rate / SEAM;
        if frame >= seam {
            return sample;
        }
        // The frame before the period, which the period's end was made to lead to.
        let end = self.data.len() / self.channels - frame;
        let Some(before) = end.checked_sub(length + 1) else { return sample };
        let was = i64::from(self.data[(end - 1) * self.channels + channel]);
        let expected = i64::from(self.data[before * self.channels + channel]);
        let offset = (was - expected) * (seam - frame) as i64 / (seam + 1) as i64;
        (sample + offset).clamp(i64::from(i16::MIN), i64::from(i16::MAX))
    }

    fn merge(&mut self, mut made_up: MadeUp, decoded: &[i16]) {
        let faded = self.rate * FADED_NUM / FADED_DEN;
        let length = self.period.len() / self.channels;
        let silent = made_up.silent || made_up.frames >= faded;
        let start = self.data.len() / self.channels;
        let frames = decoded.len() / self.channels;
        if silent {
            let seam = (self.rate / SEAM).min(frames);
            self.data.extend_from_slice(decoded);
            for i in 0..seam * self.channels {
                let at = start * self.channels + i;
                self.data[at] = blend(0, self.data[at], i / self.channels + 1, seam + 1);
            }
            return;
        }
        // More of the made-up sound, a period and an overlap, to find where what came fits: later
        // in it, or with a little of what came left out, whichever moves time less.
        let overlap = (self.rate / OVERLAP).min(frames);
        let fade = (self.rate / BACK).min(frames);
        self.extend_made_up(&mut made_up, length + fade);
        let decoded_at = self.data.len() / self.channels;
        self.data.extend_from_slice(decoded);
        let later = self.most_alike(decoded_at, overlap, start..start + length);
        let most = length.min(frames - fade);
        let sooner = self.most_alike(start, overlap, decoded_at..decoded_at + most);
        let (at, skipped) = match (later, sooner) {
            (Some(later), Some(sooner)) => {
                let (later_by, sooner_by) = (later.at - start, sooner.at - decoded_at);
                let worse = sooner.alike < later.alike - SAME;
                if worse || (later_by <= sooner_by && later.alike >= sooner.alike - SAME) {
                    (later.at, 0)
                } else {
                    (start, sooner_by)
                }
            }
            (Some(later), None) => (later.at, 0),
            (None, _) => (start, 0),
        };
        for i in 0..fade * self.channels {
            let made = self.data[at * self.channels + i];
            let real = &mut self.data[(decoded_at + skipped) * self.channels + i];
            *real = blend(made, *real, i / self.channels + 1, fade + 1);
        }
        self.data.drain(at * self.channels..(decoded_at + skipped) * self.channels);
    }

    // -------------------------------------------------------------------- seams

    /// Goes over from what is at `from` to what is at `to`, writing there.
    fn cross_fade(&mut self, from: usize, to: usize, frames: usize) {
        // Where the two overlap, what is written is never read again in this direction ...
        let each = |samples: &mut Self, i: usize| {
            for channel in 0..samples.channels {
                let old = samples.data[(from + i) * samples.channels + channel];
                let new = &mut samples.data[(to + i) * samples.channels + channel];
                *new = blend(old, *new, i + 1, frames + 1);
            }
        };
        if to <= from {
            (0..frames).for_each(|i| each(self, i));
        } else {
            // ... and in the other, from the end on.
            (0..frames).rev().for_each(|i| each(self, i));
        }
    }

    /// The place among `candidates` that looks most like the one at `template`.
    fn most_alike(
        &self,
        template: usize,
        frames: usize,
        candidates: Range<usize>,
    ) -> Option<Found> {
        if candidates.is_empty() || frames == 0 {
            return None;
        }
        // Roughly first, at about 8 kHz, then exactly around the best.
        let coarse = (self.rate / 8_000).max(1);
        // An odd stride takes both channels in turn.
        let stride = (coarse * self.channels) | 1;
        let mut best =
            self.best_of(template, frames, stride, candidates.clone().step_by(coarse))?;
        if stride > 1 {
            let near = best.at.saturating_sub(coarse - 1).max(candidates.start)
                ..(best.at + coarse).min(candidates.end);
            best = self.best_of(template, frames, 1, near).unwrap_or(best);
        }
        Some(best)
    }

    fn best_of(
        &self,
        template: usize,
        frames: usize,
        stride: usize,
        candidates: impl Iterator<Item = usize>,
    ) -> Option<Found> {
        let here = &self.data[template * self.channels..(template + frames) * self.channels];
        let energy = energy(here, stride);
        let count = here.len().div_ceil(stride) as f64;
        let mut best: Option<Found> = None;
        for at in candidates {
            let from = at * self.channels;
            let there = &self.data[from..from + here.len()];
            let (mut product, mut other) = (0_i64, 0_i64);
            for (a, b) in here.iter().step_by(stride).zip(there.iter().step_by(stride)) {
                product += i64::from(*a) * i64::from(*b);
                other += i64::from(*b) * i64::from(*b);
            }
            let quiet = energy.max(other as f64) < QUIET * count;
            let both = (energy * other as f64).sqrt();
            let alike = if both > 0.0 { product as f64 / both } else { 0.0 };
            if best.is_none_or(|best| alike > best.alike) {
                best = Some(Found { at, alike, quiet });
            }
        }
        best
    }

    /// Lets go of what was played too long ago.
    fn forget(&mut self) {
        let keep = self.rate / HISTORY * self.channels;
        if self.head > keep * 2 {
            let gone = self.head - keep;
            self.data.drain(..gone);
            self.head -= gone;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Found {
    at: usize,
    alike: f64,
    quiet: bool,
}

fn energy(samples: &[i16], stride: usize) -> f64 {
    samples.iter().step_by(stride).map(|s| f64::from(*s) * f64::from(*s)).sum()
}

/// Between `from` (at 0) and `to` (at `of`).
fn blend(from: i16, to: i16, at: usize, of: usize) -> i16 {
    let (at, of) = (at as i64, of.max(1) as i64);
    ((i64::from(from) * (of - at) + i64::from(to) * at) / of) as i16
}

#[cfg(test)]
mod tests;
