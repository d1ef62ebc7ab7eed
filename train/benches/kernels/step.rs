//! A whole step, and what it would take if nothing but its matrix products were computed.

use crate::operations::Phase;
use crate::shape::Shape;
use candle_core::Result;
use std::time::Instant;
use train::kernels::matrix::{Matrix, Threads, multiply};
use train::optim::{AdamW, AdamWSettings, Moments, measure};

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// GFLOP/s of a product large enough that nothing but the arithmetic counts, the best of several.
pub(crate) fn product_peak() -> f64 {
    const SIZE: usize = 1536;
    let (x, w, mut y) = (vec![0.5f32; SIZE * SIZE], vec![0.5f32; SIZE * SIZE], vec![0.0; SIZE * SIZE]);
    let once = || {
        let start = Instant::now();
        let w = Matrix::new(&w, SIZE, SIZE).transposed();
        multiply(&mut y, SIZE, false, Matrix::new(&x, SIZE, SIZE), w, Threads::All);
        2.0 * (SIZE * SIZE * SIZE) as f64 / milliseconds(start) / 1e6
    };
    std::iter::repeat_with(once).take(8).fold(0.0, f64::max)
}

/// The largest resident memory so far in MB, where the kernel tells it (Linux).
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes: f64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1.024e-3)
}

/// The three products of each linear map of a step, nothing else. Gives milliseconds.
fn bare_products(shape: &Shape, repetitions: usize) -> f64 {
    let maps = shape.linear_maps();
    let most = |size: fn(&(usize, usize, usize)) -> usize| maps.iter().map(size).max().unwrap_or(0);
    let x = vec![0.5f32; most(|(rows, inputs, _)| rows * inputs)];
    let weight = vec![0.5f32; most(|(_, inputs, outputs)| inputs * outputs)];
    let chunk_of = |rows: usize, outputs: usize| rows.min((1 << 24) / outputs).min(rows);
    let mut y = vec![0.5f32; most(|(rows, _, outputs)| *rows.min(&((1 << 24) / outputs)) * outputs)];
    let (mut dx, mut dw) = (x.clone(), weight.clone());
    let mut times = Vec::new();
    for _ in 0..=repetitions {
        let start = Instant::now();
        for &(all_rows, inputs, outputs) in &maps {
            let mut done = 0;
            while done < all_rows {
                let rows = chunk_of(all_rows - done, outputs);
                let (x, w) = (Matrix::new(&x, rows, inputs), Matrix::new(&weight, outputs, inputs));
                multiply(&mut y, outputs, false, x, w.transposed(), Threads::All);
                let dy = Matrix::new(&y, rows, outputs);
                multiply(&mut dx, inputs, false, dy, w, Threads::All);
                multiply(&mut dw, inputs, true, dy.transposed(), x, Threads::All);
                done += rows;
            }
            y.fill(0.5);
        }
        times.push(milliseconds(start));
    }
    median(times)
}

/// Times a whole step, and says what of it the `phases` take.
pub(crate) fn step(shape: &Shape, phases: &[Phase], peak: f64, repetitions: usize) -> Result<()> {
    let (student, batch, objective) = (shape.student(), shape.batch(), shape.objective());
    let parameters = student.parameters();
    let mut optimiser = AdamW::new(AdamWSettings::default(), Moments::zeros(parameters), parameters).expect("moments of these parameters");
    let (mut forwards, mut backwards, mut updates, mut steps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for repetition in 0..=repetitions {
        let start = Instant::now();
        let plan = student.dropout_plan(0, repetition as u64);
        let (loss, _) = student.loss(&batch, &objective, &plan)?;
        let forward = milliseconds(start);
        loss.backward()?;
        drop(loss);
        let backward = milliseconds(start) - forward;
        let scale = measure(parameters, 5.0)?.scale;
        optimiser.update(parameters, 5e-4, scale)?;
        if repetition > 0 {
            let all = milliseconds(start);
            forwards.push(forward);
            backwards.push(backward);
            updates.push(all - forward - backward);
            steps.push(all);
        }
    }
    let peak_memory = peak_memory();
    let operations: f64 = shape.linear_maps().iter().map(|(rows, inputs, outputs)| 6.0 * (rows * inputs * outputs) as f64).sum();
    let all_operations = operations + shape.layers as f64 * shape.attention_operations(shape.decoder);
    let (bare, step, update) = (bare_products(shape, repetitions), median(steps.clone()), median(updates));
    let fastest = steps.into_iter().fold(f64::INFINITY, f64::min);
    let (forward, backward) = (median(forwards), median(backwards));
    let mut rest = step - update;
    for Phase { name, milliseconds } in phases {
        println!("  {:5.1} % of a step: {name}", 100.0 * milliseconds / step);
        rest -= milliseconds;
    }
    println!("  {:5.1} % of a step: norm of the gradients and AdamW", 100.0 * update / step);
    if !phases.is_empty() {
        println!(
            "  {:5.1} % of a step: sums of gradients between operations, memory, what the phases alone do not show",
            100.0 * rest / step
        );
    }
    let rate = operations / bare / 1e6;
    println!("  bare products of the linear maps {bare:.1} ms, {rate:.1} GFLOP/s, {:.0} % of a large product's", 100.0 * rate / peak);
    println!("  step {step:.1} ms (fastest {fastest:.1}): forward {forward:.1}, backward {backward:.1}, norm and AdamW {update:.1}");
    let (rate, tokens) = (all_operations / step / 1e6, 1e3 * shape.rows() as f64 / step);
    println!(
        "  {tokens:.0} tokens/s, {rate:.1} GFLOP/s, {:.0} % of a large product's, {:.2} times the bare products",
        100.0 * rate / peak,
        step / bare
    );
    if let Some(megabytes) = peak_memory {
        println!("  peak memory {megabytes:.0} MB");
    }
    Ok(())
}
