//! The loop: the corpus first, then random input until the time is over.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Once,
    time::{Duration, Instant},
};

use crate::{
    Broken, Dice, Fate, Target,
    meter::{self, Cost},
};

/// Seconds that a target gets where `MESHD_FUZZ_SECONDS` says nothing.
const SECONDS: u64 = 3;
/// The seed where `MESHD_FUZZ_SEED` says nothing: the same inputs each time.
const SEED: u64 = 1;
/// Most inputs kept for their fate in one run.
const POOL: usize = 4096;
/// Longest random input, in bytes.
const LONGEST: usize = 256 << 10;

thread_local! {
    /// What the last panic of this thread said.
    static LAST_WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// How long, and with which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// For random input; the corpus is always tried whole.
    pub time: Duration,
    /// Repeats the run.
    pub seed: u64,
}

impl Budget {
    /// What `MESHD_FUZZ_SECONDS` and `MESHD_FUZZ_SEED` say, by default 3 s and seed 1.
    ///
    /// # Panics
    /// Where one of them is no number.
    pub fn from_environment() -> Self {
        let number = |name: &str, default| match std::env::var(name) {
            Ok(text) => text
                .parse()
                .unwrap_or_else(|_| panic!("{name}={text} is no number")),
            Err(_) => default,
        };
        Self {
            time: Duration::from_secs(number("MESHD_FUZZ_SECONDS", SECONDS)),
            seed: number("MESHD_FUZZ_SEED", SEED),
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Inputs of the committed corpus.
    pub corpus: usize,
    /// Random inputs.
    pub random: usize,
    /// How many inputs had which fate.
    pub fates: BTreeMap<String, usize>,
    /// The most that one input cost.
    pub worst: Option<Cost>,
}

/// An input that broke a promise.
#[derive(Debug, thiserror::Error)]
#[error(
    "{target}: {promise}\n  seed {seed}, random input {number} (0: of the corpus)\n  input: {}\n  replay: cargo run -p fuzz -- {target} {}",
    file.display(),
    file.display()
)]
pub struct Failure {
    /// Which target.
    pub target: &'static str,
    /// The promise.
    pub promise: Broken,
    /// The seed of the run.
    pub seed: u64,
    /// Which input.
    pub number: usize,
    /// Where the input is kept.
    pub file: PathBuf,
}

/// Tries the corpus and then random input.
///
/// # Errors
/// [`Failure`]: the first input that broke a promise, kept in a file.
pub fn run(target: &dyn Target, budget: Budget) -> Result<Run, Failure> {
    let mut run = Run::default();
    let fail = |promise, number, input: &[u8]| Failure {
        target: target.name(),
        promise,
        seed: budget.seed,
        number,
        file: keep(target.name(), input),
    };
    let mut pool = corpus(target.name());
    for input in &pool {
        run.take(target, input)
            .map_err(|promise| fail(promise, 0, input))?;
        run.corpus += 1;
    }
    let mut dice = Dice::new(budget.seed);
    let end = Instant::now() + budget.time;
    while Instant::now() < end {
        let mut input = target.generate(&mut dice, &pool);
        input.truncate(LONGEST);
        run.random += 1;
        let is_new = run
            .take(target, &input)
            .map_err(|promise| fail(promise, run.random, &input))?;
        if is_new && pool.len() < POOL {
            pool.push(input);
        }
    }
    Ok(run)
}

impl Run {
    /// Tries one input; true: nothing before it had such a fate.
    fn take(&mut self, target: &dyn Target, input: &[u8]) -> Result<bool, Broken> {
        let (fate, cost) = attempt(target, input)?;
        let known = self.fates.len();
        for word in fate.0 {
            *self.fates.entry(word).or_default() += 1;
        }
        let worst = self.worst.get_or_insert(cost);
        worst.time = worst.time.max(cost.time);
        worst.memory = worst.memory.max(cost.memory);
        Ok(self.fates.len() > known)
    }

    /// The run as a table of fates.
    pub fn table(&self) -> String {
        let mut text = format!("{} of the corpus, {} random", self.corpus, self.random);
        if let Some(worst) = self.worst {
            let (time, kib) = (worst.time.as_secs_f64() * 1e3, worst.memory >> 10);
            let written = write!(text, "; one input: at most {time:.1} ms, {kib} KiB");
            written.expect("writing to a string does not fail");
        }
        for (fate, count) in &self.fates {
            let written = write!(text, "\n  {count:>9}  {fate}");
            written.expect("writing to a string does not fail");
        }
        text
    }
}

/// Tries one input, with an eye on panics, time and memory.
///
/// # Errors
/// The promise that it broke.
pub fn attempt(target: &dyn Target, input: &[u8]) -> Result<(Fate, Cost), Broken> {
    listen_to_panics();
    let work = AssertUnwindSafe(|| target.run(input));
    let (result, cost) = meter::measure(|| panic::catch_unwind(work));
    let fate = result.unwrap_or_else(|_| {
        let words = LAST_WORDS.with_borrow(Clone::clone);
        Err(Broken(format!("it panicked: {words}")))
    })?;
    let allowed = target.allowance(input);
    if cost.time > Duration::from_millis(allowed.milliseconds) || cost.memory > allowed.bytes {
        return Err(Broken(format!(
            "{} bytes of input cost {:?} and {} bytes; allowed are {allowed:?}",
            input.len(),
            cost.time,
            cost.memory
        )));
    }
    Ok((fate, cost))
}

/// Keeps what a panic says, beside telling it as ever.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            LAST_WORDS.with_borrow_mut(|words| *words = info.to_string());
            before(info);
        }));
    });
}

/// The committed inputs of a target, in the order of their names.
///
/// # Panics
/// Where the folder cannot be read: a corpus that is lost would go unnoticed.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let inputs = read(&folder);
    match inputs {
        Ok(inputs) if !inputs.is_empty() => inputs,
        Ok(_) => panic!("{} is empty", folder.display()),
        Err(error) => panic!("{}: {error}", folder.display()),
    }
}

fn read(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut files = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    files.sort();
    files.iter().map(fs::read).collect()
}

/// Writes an input that broke something where the next build does not remove it.
fn keep(target: &str, input: &[u8]) -> PathBuf {
    let folder = std::env::var_os("MESHD_FUZZ_OUT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz"),
        PathBuf::from,
    );
    // FNV-1a, only to give different inputs different names.
    let sum = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let file = folder.join(format!("{target}-{sum:016x}"));
    match fs::create_dir_all(&folder).and_then(|()| fs::write(&file, input)) {
        Ok(()) => file,
        Err(error) => panic!(
            "{}: {error}; the input was {}",
            file.display(),
            hex::encode(input)
        ),
    }
}
