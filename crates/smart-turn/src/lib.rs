//! Smart Turn v3 (by Daily, BSD 2-Clause): a small Whisper encoder with a classifier on top, which
//! tells from the last 8 s of a voice whether its turn has ended. Here is what runs it, without the
//! file: the features, and as much of ONNX as its graph needs.

mod features;
mod graph;
mod onnx;

pub use features::WINDOW;
use graph::Graph;
pub use graph::GraphError;

/// The network, its weights dequantised.
#[derive(Debug)]
pub struct Network {
    graph: Graph,
}

impl Network {
    /// From the bytes of the ONNX file.
    ///
    /// # Errors
    /// A file that is no model, or one with operations that are not known.
    pub fn parse(bytes: &[u8]) -> Result<Self, GraphError> {
        Ok(Self { graph: Graph::parse(bytes)? })
    }

    /// The probability (0..1) that the turn has ended with these samples: the last 8 s (mono s16 at
    /// 16 kHz), some 200 ms of silence at their end included. Blocks for 0.1 s and more.
    ///
    /// # Errors
    /// A graph that is not what it should be.
    pub fn ended(&self, samples: &[i16]) -> Result<f32, GraphError> {
        let answer = self.graph.run(features::features(samples).into_dyn())?;
        Ok(answer.first().copied().unwrap_or(0.0).clamp(0.0, 1.0))
    }
}
