//! Milliseconds and GFLOP/s of every fused operation and of whole training steps, forward and backward, beside the bare matrix products of
//! the same shapes in the same run: absolute figures drift with the machine, the ratio says what the rest costs.
//!
//! `cargo bench -p train --bench kernels [-- demo|small|base|long|stories] [repetitions] [asked=SHARE] [step]`
//!
//! `asked=0.15` times the step with that share of the rows asked; `step` leaves out the single operations. The peak of memory is the process's,
//! so one shape at a time says most.

mod operations;
mod shape;
mod step;

use candle_core::Result;
use shape::{SHAPES, Shape};
use train::kernels::level::Level;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    train::allocator::keep_freed_pages();
    // candle adds gradients on a pool of its own, whose workers spin; beside rayon's threads on the same cores that costs milliseconds for
    // every activation, and its adding is bound by memory anyway. The program does the same.
    // SAFETY: nothing else runs yet, and candle reads the variable on first use.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let repetitions = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(7);
    let share: Option<f64> = arguments.iter().find_map(|argument| argument.strip_prefix("asked=")?.parse().ok());
    let wanted =
        |shape: &&Shape| !SHAPES.iter().any(|s| arguments.iter().any(|a| a == s.name)) || arguments.iter().any(|a| a == shape.name);
    let peak = step::product_peak();
    println!("{} instructions, {} threads, {peak:.0} GFLOP/s of a large product", Level::best().name(), rayon::current_num_threads());
    for shape in SHAPES.iter().filter(wanted) {
        let shape = &share.map_or(*shape, |share| shape.with_share(share));
        let Shape { name, layers, width, between, vocabulary, sequences, length, .. } = shape;
        println!(
            "{name}: {layers} x {width}, {between} between, vocabulary {vocabulary}, {sequences} x {length} tokens, {} asked",
            shape.asked_rows()
        );
        // On one of the pool's own threads, as the program's steps are.
        rayon::scope(|_| time_shape(shape, &arguments, peak, repetitions))?;
    }
    Ok(())
}

fn time_shape(shape: &Shape, arguments: &[String], peak: f64, repetitions: usize) -> Result<()> {
    let phases = match arguments.iter().any(|argument| argument == "step") {
        true => Vec::new(),
        false => operations::operations(shape, peak, repetitions)?,
    };
    step::step(shape, &phases, peak, repetitions)
}
