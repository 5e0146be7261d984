//! Runs an ONNX graph in f32: the operations that Smart Turn's quantised file is made of, no more.
//!
//! Weights are dequantised once. Where the file rounds what flows between two operations to eight
//! bits, so does this, so that the answer is the quantised network's.

use std::{borrow::Cow, collections::HashMap};

use ndarray::{Array1, Array2, ArrayD, Axis, IxDyn, Slice, Zip};

use crate::onnx::{self, Node, kind};

/// Why a graph cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    #[error("not an ONNX model: {0}")]
    Malformed(String),
    #[error("the operation {0} is not known")]
    Unknown(String),
    #[error("{operation}: {problem}")]
    Operation { operation: String, problem: String },
}

/// Integers stay integers: shapes, indices, quantised values.
#[derive(Debug, Clone)]
enum Value {
    Floats(ArrayD<f32>),
    Ints(ArrayD<i64>, Range),
}

/// What an integer tensor's elements may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    Byte,
    SignedByte,
    Wide,
}

impl Range {
    fn clamp(self, value: f32) -> f32 {
        match self {
            Self::Byte => value.clamp(0.0, 255.0),
            Self::SignedByte => value.clamp(-128.0, 127.0),
            Self::Wide => value,
        }
    }
}

type Problem = String;

/// A graph with its constants, ready to run.
#[derive(Debug)]
pub struct Graph {
    nodes: Vec<Node>,
    constants: HashMap<String, Value>,
    input: String,
    output: String,
    /// For each node the values that nothing after it needs.
    done_with: Vec<Vec<String>>,
}

impl Graph {
    /// # Errors
    /// A file that is no model, or one with operations that are not known.
    pub fn parse(bytes: &[u8]) -> Result<Self, GraphError> {
        let model: onnx::Model = prost::Message::decode(bytes)
            .map_err(|error: prost::DecodeError| GraphError::Malformed(error.to_string()))?;
        let graph = model.graph.ok_or_else(|| GraphError::Malformed("no graph".into()))?;
        let mut constants = HashMap::new();
        for tensor in &graph.constants {
            let value = constant(tensor).map_err(GraphError::Malformed)?;
            constants.insert(tensor.name.clone(), value);
        }
        let input = graph.inputs.iter().find(|input| !constants.contains_key(&input.name));
        let (Some(input), Some(output)) = (input, graph.outputs.first()) else {
            return Err(GraphError::Malformed("no input or no output".into()));
        };
        let mut parsed = Self {
            nodes: Vec::new(),
            constants,
            input: input.name.clone(),
            output: output.name.clone(),
            done_with: Vec::new(),
        };
        // What depends on constants alone is worked out once.
        for node in graph.nodes {
            let known = node.inputs.iter().all(|name| parsed.constants.contains_key(name));
            if known {
                let values = HashMap::new();
                let value = parsed.operate(&node, &values)?;
                if let Some(name) = node.outputs.first() {
                    parsed.constants.insert(name.clone(), value);
                }
            } else {
                parsed.nodes.push(node);
            }
        }
        parsed.find_last_uses();
        Ok(parsed)
    }

    fn find_last_uses(&mut self) {
        let mut last = HashMap::new();
        for (n, node) in self.nodes.iter().enumerate() {
            for name in &node.inputs {
                last.insert(name.clone(), n);
            }
        }
        self.done_with = vec![Vec::new(); self.nodes.len()];
        for (name, n) in last {
            if !self.constants.contains_key(&name) && name != self.output {
                self.done_with[n].push(name);
            }
        }
    }

    /// # Errors
    /// Shapes that do not fit.
    pub fn run(&self, input: ArrayD<f32>) -> Result<ArrayD<f32>, GraphError> {
        let mut values = HashMap::from([(self.input.clone(), Value::Floats(input))]);
        for (node, done_with) in self.nodes.iter().zip(&self.done_with) {
            let value = self.operate(node, &values)?;
            for name in done_with {
                values.remove(name);
            }
            if let Some(name) = node.outputs.first() {
                values.insert(name.clone(), value);
            }
        }
        match values.remove(&self.output) {
            Some(Value::Floats(output)) => Ok(output),
            _ => Err(GraphError::Malformed("no output came".into())),
        }
    }

    fn operate(&self, node: &Node, values: &HashMap<String, Value>) -> Result<Value, GraphError> {
        let inputs: Vec<&Value> = node
            .inputs
            .iter()
            .filter_map(|name| values.get(name).or_else(|| self.constants.get(name)))
            .collect();
        if inputs.len() < node.inputs.iter().filter(|name| !name.is_empty()).count() {
            let problem = "an input is missing".to_owned();
            return Err(GraphError::Operation { operation: node.operation.clone(), problem });
        }
        operation(node, &inputs)
            .ok_or_else(|| GraphError::Unknown(node.operation.clone()))?
            .map_err(|problem| GraphError::Operation {
                operation: format!("{} ({})", node.operation, node.outputs.join(", ")),
                problem,
            })
    }
}

fn constant(tensor: &onnx::Tensor) -> Result<Value, Problem> {
    let dims: Option<Vec<usize>> =
        tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let shape = IxDyn(&dims.ok_or("a negative size")?);
    let fit = |error: ndarray::ShapeError| format!("{}: {error}", tensor.name);
    let longs = |range, data: Vec<i64>| {
        ArrayD::from_shape_vec(shape.clone(), data)
            .map(|array| Value::Ints(array, range))
            .map_err(fit)
    };
    let raw = !tensor.raw.is_empty();
    let narrow = || tensor.ints.iter().map(|int| i64::from(*int)).collect::<Vec<_>>();
    match tensor.kind {
        kind::FLOAT => {
            let data = if raw {
                let words = tensor.raw.chunks_exact(4);
                words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            } else {
                tensor.floats.clone()
            };
            ArrayD::from_shape_vec(shape, data).map(Value::Floats).map_err(fit)
        }
        kind::UINT8 if raw => {
            longs(Range::Byte, tensor.raw.iter().map(|b| i64::from(*b)).collect())
        }
        kind::UINT8 => longs(Range::Byte, narrow()),
        kind::INT8 if raw => longs(
            Range::SignedByte,
            tensor.raw.iter().map(|b| i64::from(b.cast_signed())).collect(),
        ),
        kind::INT8 => longs(Range::SignedByte, narrow()),
        kind::INT32 if raw => {
            let words = tensor.raw.chunks_exact(4);
            let ints = words.map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            longs(Range::Wide, ints.collect())
        }
        kind::INT32 => longs(Range::Wide, narrow()),
        kind::INT64 if raw => {
            let words = tensor.raw.chunks_exact(8);
            let ints = words.map(|b| b.iter().rev().fold(0_u64, |sum, b| sum << 8 | u64::from(*b)));
            longs(Range::Wide, ints.map(u64::cast_signed).collect())
        }
        kind::INT64 => longs(Range::Wide, tensor.longs.clone()),
        other => Err(format!("{}: elements of kind {other}", tensor.name)),
    }
}

/// None: not known.
fn operation(node: &Node, inputs: &[&Value]) -> Option<Result<Value, Problem>> {
    let floats = |n: usize| match inputs.get(n) {
        Some(Value::Floats(array)) => Ok(array),
        _ => Err(format!("input {n} should be floats")),
    };
    let ints = |n: usize| match inputs.get(n) {
        Some(Value::Ints(array, _)) => Ok(array.iter().copied().collect::<Vec<i64>>()),
        _ => Err(format!("input {n} should be integers")),
    };
    let binary =
        |with: fn(f32, f32) -> f32| broadcast(floats(0)?, floats(1)?, with).map(Value::Floats);
    let unary = |with: fn(f32) -> f32| Ok(Value::Floats(floats(0)?.mapv(with)));
    let result = match node.operation.as_str() {
        "Add" => binary(|a, b| a + b),
        "Mul" => binary(|a, b| a * b),
        "Div" => binary(|a, b| a / b),
        "Erf" => unary(erf),
        "Tanh" => unary(f32::tanh),
        "Sigmoid" => unary(|x| 1.0 / (1.0 + (-x).exp())),
        "QuantizeLinear" => quantize(inputs),
        "DequantizeLinear" => dequantize(node, inputs),
        "MatMul" => (|| matmul(floats(0)?, floats(1)?).map(Value::Floats))(),
        "Gemm" => (|| gemm(node, floats(0)?, floats(1)?, floats(2)?))(),
        "Conv" => (|| conv(node, floats(0)?, floats(1)?, floats(2)?))(),
        "LayerNormalization" => (|| layer_norm(node, floats(0)?, floats(1)?, floats(2)?))(),
        "Softmax" => (|| softmax(node, floats(0)?))(),
        "ReduceSum" => (|| reduce_sum(node, floats(0)?, &ints(1)?))(),
        "Transpose" => (|| transpose(node, floats(0)?))(),
        "Reshape" => (|| reshape(node, floats(0)?, &ints(1)?))(),
        "Shape" => shape(node, inputs),
        "Gather" => (|| gather(&ints(0)?, &ints(1)?))(),
        "Slice" => (|| slice(&ints(0)?, &ints(1)?, &ints(2)?))(),
        "Concat" => (|| {
            let parts: Result<Vec<_>, Problem> = (0..inputs.len()).map(ints).collect();
            Ok(list(parts?.concat()))
        })(),
        _ => return None,
    };
    Some(result)
}

fn list(values: Vec<i64>) -> Value {
    Value::Ints(Array1::from_vec(values).into_dyn(), Range::Wide)
}

fn axis_of(axis: i64, dims: usize) -> Result<usize, Problem> {
    let at = if axis < 0 { axis + dims as i64 } else { axis };
    usize::try_from(at).ok().filter(|at| *at < dims).ok_or_else(|| format!("no axis {axis}"))
}

fn broadcast(
    a: &ArrayD<f32>,
    b: &ArrayD<f32>,
    with: fn(f32, f32) -> f32,
) -> Result<ArrayD<f32>, Problem> {
    if b.len() == 1 && b.ndim() <= a.ndim() {
        let b = b.first().copied().unwrap_or_default();
        return Ok(a.mapv(|a| with(a, b)));
    }
    if a.len() == 1 && a.ndim() <= b.ndim() {
        let a = a.first().copied().unwrap_or_default();
        return Ok(b.mapv(|b| with(a, b)));
    }
    let misfit = || format!("{:?} and {:?} do not fit", a.shape(), b.shape());
    // In this graph one side always has the shape of both.
    if let Some(b) = b.broadcast(a.raw_dim()) {
        return Ok(Zip::from(a).and_broadcast(&b).map_collect(|a, b| with(*a, *b)));
    }
    let a = a.broadcast(b.raw_dim()).ok_or_else(misfit)?;
    Ok(Zip::from(b).and_broadcast(&a).map_collect(|b, a| with(*a, *b)))
}

fn quantize(inputs: &[&Value]) -> Result<Value, Problem> {
    let [Value::Floats(x), Value::Floats(scale), Value::Ints(zero, range)] = inputs else {
        return Err("quantises by one scale and one zero".into());
    };
    let (Some(scale), Some(zero)) = (scale.first().copied(), zero.first().copied()) else {
        return Err("no scale".into());
    };
    if scale == 0.0 || *range == Range::Wide {
        return Err("no eight-bit scale".into());
    }
    let zero = zero as f32;
    // Kept as floats: they are about to be multiplied.
    Ok(Value::Floats(x.mapv(|x| range.clamp((x / scale).round_ties_even() + zero))))
}

fn dequantize(node: &Node, inputs: &[&Value]) -> Result<Value, Problem> {
    let [x, Value::Floats(scale), rest @ ..] = inputs else { return Err("no scale".into()) };
    let zero = match rest.first() {
        Some(Value::Ints(zero, _)) => zero.mapv(|zero| zero as f32),
        _ => ArrayD::zeros(scale.raw_dim()),
    };
    let x: Cow<'_, ArrayD<f32>> = match x {
        Value::Floats(x) => Cow::Borrowed(x),
        Value::Ints(x, _) => Cow::Owned(x.mapv(|x| x as f32)),
    };
    let mut x = x.into_owned();
    if scale.len() == 1 {
        let (scale, zero) = (scale.first().copied(), zero.first().copied());
        let (scale, zero) = (scale.unwrap_or(1.0), zero.unwrap_or(0.0));
        x.mapv_inplace(|x| (x - zero) * scale);
    } else {
        let axis = Axis(axis_of(node.int("axis").unwrap_or(1), x.ndim())?);
        if x.len_of(axis) != scale.len() || zero.len() != scale.len() {
            return Err("a scale for each channel is missing".into());
        }
        for ((mut lane, scale), zero) in x.axis_iter_mut(axis).zip(scale.iter()).zip(zero.iter()) {
            lane.mapv_inplace(|x| (x - zero) * scale);
        }
    }
    Ok(Value::Floats(x))
}

fn matmul(a: &ArrayD<f32>, b: &ArrayD<f32>) -> Result<ArrayD<f32>, Problem> {
    let misfit = || format!("{:?} × {:?}", a.shape(), b.shape());
    let (rows, inner) = match a.shape() {
        [.., rows, inner] => (*rows, *inner),
        _ => return Err(misfit()),
    };
    let columns = *b.shape().last().ok_or_else(misfit)?;
    let flat = |array: &ArrayD<f32>, rows: usize, columns: usize| {
        array
            .as_standard_layout()
            .into_owned()
            .into_shape_with_order((array.len() / (rows * columns).max(1), rows, columns))
            .map_err(|error| error.to_string())
    };
    let batches = a.len() / (rows * inner).max(1);
    let mut shape = a.shape().to_vec();
    shape.pop();
    shape.push(columns);
    if b.ndim() == 2 {
        if b.shape()[0] != inner {
            return Err(misfit());
        }
        let a = flat(a, batches * rows, inner)?;
        let b = flat(b, inner, columns)?;
        let product: Array2<f32> = a.index_axis(Axis(0), 0).dot(&b.index_axis(Axis(0), 0));
        return product.into_shape_with_order(IxDyn(&shape)).map_err(|error| error.to_string());
    }
    let (a, b) = (flat(a, rows, inner)?, flat(b, inner, columns)?);
    if a.len_of(Axis(0)) != b.len_of(Axis(0)) || b.len_of(Axis(1)) != inner {
        return Err(misfit());
    }
    let mut product = ndarray::Array3::zeros((batches, rows, columns));
    for n in 0..batches {
        let one = a.index_axis(Axis(0), n).dot(&b.index_axis(Axis(0), n));
        product.index_axis_mut(Axis(0), n).assign(&one);
    }
    product.into_shape_with_order(IxDyn(&shape)).map_err(|error| error.to_string())
}

fn is_one(factor: f32) -> bool {
    (factor - 1.0).abs() < f32::EPSILON
}

fn two(array: &ArrayD<f32>) -> Result<ndarray::ArrayView2<'_, f32>, Problem> {
    array.view().into_dimensionality().map_err(|error| error.to_string())
}

fn gemm(node: &Node, a: &ArrayD<f32>, b: &ArrayD<f32>, c: &ArrayD<f32>) -> Result<Value, Problem> {
    let plain = node.float("alpha").is_none_or(is_one)
        && node.float("beta").is_none_or(is_one)
        && node.int("transA").unwrap_or(0) == 0;
    if !plain {
        return Err("only A × B + C, with B perhaps transposed".into());
    }
    let (a, b) = (two(a)?, two(b)?);
    let b = if node.int("transB").unwrap_or(0) == 1 { b.reversed_axes() } else { b };
    if a.ncols() != b.nrows() {
        return Err(format!("{:?} × {:?}", a.shape(), b.shape()));
    }
    broadcast(&a.dot(&b).into_dyn(), c, |x, y| x + y).map(Value::Floats)
}

/// One-dimensional, one group: as a product with the unrolled input.
fn conv(
    node: &Node,
    x: &ArrayD<f32>,
    weights: &ArrayD<f32>,
    bias: &ArrayD<f32>,
) -> Result<Value, Problem> {
    let (&[1, channels, length], &[filters, inner, width]) = (x.shape(), weights.shape()) else {
        return Err(format!("{:?} by {:?}", x.shape(), weights.shape()));
    };
    let stride = usize::try_from(node.ints("strides").first().copied().unwrap_or(1));
    let &[before, after] = node.ints("pads") else { return Err("two pads are needed".into()) };
    let (Ok(stride), Ok(before), Ok(after)) =
        (stride, usize::try_from(before), usize::try_from(after))
    else {
        return Err("a negative size".into());
    };
    let fits = inner == channels
        && stride > 0
        && node.int("group").unwrap_or(1) == 1
        && length + before + after >= width
        && bias.len() == filters;
    if !fits {
        return Err("only plain convolutions".into());
    }
    let steps = (length + before + after - width) / stride + 1;
    let unrolled = Array2::from_shape_fn((channels * width, steps), |(row, step)| {
        let at = (step * stride + row % width).checked_sub(before);
        at.and_then(|at| x.get(IxDyn(&[0, row / width, at]))).copied().unwrap_or(0.0)
    });
    let weights = weights
        .as_standard_layout()
        .into_owned()
        .into_shape_with_order((filters, channels * width))
        .map_err(|error| error.to_string())?;
    let mut out = weights.dot(&unrolled);
    for (mut row, bias) in out.rows_mut().into_iter().zip(bias) {
        row += *bias;
    }
    Ok(Value::Floats(out.insert_axis(Axis(0)).into_dyn()))
}

fn layer_norm(
    node: &Node,
    x: &ArrayD<f32>,
    scale: &ArrayD<f32>,
    bias: &ArrayD<f32>,
) -> Result<Value, Problem> {
    if axis_of(node.int("axis").unwrap_or(-1), x.ndim())? + 1 != x.ndim() {
        return Err("only over the last axis".into());
    }
    let epsilon = node.float("epsilon").unwrap_or(1e-5);
    let last = Axis(x.ndim() - 1);
    let mut x = x.clone();
    for mut lane in x.lanes_mut(last) {
        if lane.len() != scale.len() || lane.len() != bias.len() {
            return Err("a scale for each element is missing".into());
        }
        let mean = lane.sum() / lane.len() as f32;
        let variance = lane.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / lane.len() as f32;
        let by = 1.0 / (variance + epsilon).sqrt();
        for ((x, scale), bias) in lane.iter_mut().zip(scale).zip(bias) {
            *x = (*x - mean) * by * scale + bias;
        }
    }
    Ok(Value::Floats(x))
}

fn softmax(node: &Node, x: &ArrayD<f32>) -> Result<Value, Problem> {
    let axis = Axis(axis_of(node.int("axis").unwrap_or(-1), x.ndim())?);
    let mut x = x.clone();
    for mut lane in x.lanes_mut(axis) {
        let most = lane.fold(f32::NEG_INFINITY, |most, x| most.max(*x));
        lane.mapv_inplace(|x| (x - most).exp());
        let sum = lane.sum();
        lane.mapv_inplace(|x| x / sum);
    }
    Ok(Value::Floats(x))
}

fn reduce_sum(node: &Node, x: &ArrayD<f32>, axes: &[i64]) -> Result<Value, Problem> {
    let (&[axis], Some(0)) = (axes, node.int("keepdims")) else {
        return Err("only over one axis, which goes".into());
    };
    Ok(Value::Floats(x.sum_axis(Axis(axis_of(axis, x.ndim())?))))
}

fn transpose(node: &Node, x: &ArrayD<f32>) -> Result<Value, Problem> {
    let order: Result<Vec<usize>, Problem> =
        node.ints("perm").iter().map(|axis| axis_of(*axis, x.ndim())).collect();
    let order = order?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..x.ndim()) {
        return Err("not an order of the axes".into());
    }
    let turned = x.view().permuted_axes(IxDyn(&order));
    Ok(Value::Floats(turned.as_standard_layout().into_owned()))
}

fn reshape(node: &Node, x: &ArrayD<f32>, to: &[i64]) -> Result<Value, Problem> {
    let keeps_zero = node.int("allowzero").unwrap_or(0) == 0;
    let mut dims = Vec::with_capacity(to.len());
    for (n, dim) in to.iter().enumerate() {
        dims.push(match dim {
            0 if keeps_zero => x.shape().get(n).copied().ok_or("no such axis")?,
            -1 => 0,
            other => usize::try_from(*other).map_err(|_| "a negative size")?,
        });
    }
    if let Some(open) = to.iter().position(|dim| *dim == -1) {
        let others: usize =
            dims.iter().enumerate().filter(|(n, _)| *n != open).map(|(_, d)| d).product();
        dims[open] = x.len() / others.max(1);
    }
    let x = x.as_standard_layout().into_owned();
    x.into_shape_with_order(IxDyn(&dims)).map(Value::Floats).map_err(|error| error.to_string())
}

fn shape(node: &Node, inputs: &[&Value]) -> Result<Value, Problem> {
    let dims: Vec<i64> = match inputs {
        [Value::Floats(x)] => x.shape().iter().map(|dim| *dim as i64).collect(),
        _ => return Err("one input of floats".into()),
    };
    let bound = |name, default: usize| {
        let at = node
            .int(name)
            .map_or(default as i64, |at| if at < 0 { at + dims.len() as i64 } else { at });
        usize::try_from(at).unwrap_or(0).min(dims.len())
    };
    let (from, to) = (bound("start", 0), bound("end", dims.len()));
    Ok(list(dims.get(from..to).unwrap_or_default().to_vec()))
}

fn gather(from: &[i64], at: &[i64]) -> Result<Value, Problem> {
    let picked: Result<Vec<i64>, Problem> =
        at.iter().map(|at| Ok(from[axis_of(*at, from.len())?])).collect();
    Ok(list(picked?))
}

fn slice(from: &[i64], start: &[i64], end: &[i64]) -> Result<Value, Problem> {
    let (&[start], &[end]) = (start, end) else { return Err("only one axis".into()) };
    let array = Array1::from_vec(from.to_vec());
    let length = from.len() as isize;
    let bound = |at: i64| {
        let at = isize::try_from(at).unwrap_or(isize::MAX);
        (if at < 0 { at.saturating_add(length) } else { at }).clamp(0, length)
    };
    let (start, end) = (bound(start), bound(end));
    let end = end.max(start);
    Ok(list(array.slice_axis(Axis(0), Slice::new(start, Some(end), 1)).to_vec()))
}

/// Abramowitz and Stegun 7.1.26: within 1.5e-7.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let series = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t
        + 0.254_829_6)
        * t;
    (1.0 - series * (-x * x).exp()).copysign(x)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn erf_is_close_enough() {
        for (x, y) in [(0.0, 0.0), (0.5, 0.520_499_9), (-1.0, -0.842_700_8), (3.0, 0.999_977_9)] {
            assert!((erf(x) - y).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn a_convolution_pads_and_strides() {
        let attribute = |name: &str, ints: &[i64]| onnx::Attribute {
            name: name.into(),
            ints: ints.to_vec(),
            ..Default::default()
        };
        let node = Node {
            operation: "Conv".into(),
            attributes: vec![attribute("pads", &[1, 1]), attribute("strides", &[2])],
            ..Node::default()
        };
        let x = array![[[1.0, 2.0, 3.0, 4.0]]].into_dyn();
        let weights = array![[[1.0, 10.0, 100.0]]].into_dyn();
        let bias = array![0.5].into_dyn();
        let Ok(Value::Floats(y)) = conv(&node, &x, &weights, &bias) else { panic!("no floats") };
        assert_eq!(y, array![[[210.5, 432.5]]].into_dyn());
    }

    #[test]
    fn what_is_quantised_comes_back_rounded_and_clamped() {
        let scale = Value::Floats(array![0.5].into_dyn());
        let zero = Value::Ints(array![10].into_dyn(), Range::Byte);
        let x = Value::Floats(array![0.3, -99.0, 1_000.0].into_dyn());
        let quantised = quantize(&[&x, &scale, &zero]).unwrap();
        let Ok(Value::Floats(y)) = dequantize(&Node::default(), &[&quantised, &scale, &zero])
        else {
            panic!("no floats")
        };
        assert_eq!(y, array![0.5, -5.0, 122.5].into_dyn());
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let (a, b) = (ArrayD::zeros(IxDyn(&[2, 3])), ArrayD::zeros(IxDyn(&[4, 5])));
        assert!(matmul(&a, &b).is_err());
        assert!(broadcast(&a, &b, |x, y| x + y).is_err());
        assert!(matches!(Graph::parse(b"no model"), Err(GraphError::Malformed(_))));
    }
}
