//! Values made from files, made anew when the files change, kept when the new files are bad.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringmail_registry::watch_dir::WatchDir;
use tokio::sync::watch;

/// A value made from files; `None` until they have been good once. Clones share it.
#[derive(Debug)]
pub struct Reloaded<T>(watch::Receiver<Option<Arc<T>>>);

impl<T> Clone for Reloaded<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Makes a value from the contents of files, or says why it cannot.
pub type Make<T> = Box<dyn Fn(&[String]) -> Result<T, String> + Send + Sync>;

/// How to make a value from the contents of files.
pub struct Recipe<T> {
    /// What it is, for the log.
    pub what: &'static str,
    /// The files, in the order in which `make` takes their contents.
    pub files: Vec<PathBuf>,
    /// Makes the value.
    pub make: Make<T>,
    /// Told after each attempt whether it went well.
    pub outcome: Box<dyn Fn(bool) + Send + Sync>,
}

impl<T> fmt::Debug for Recipe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipe").field("what", &self.what).field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Follows the files from now on, until the last clone is dropped.
    pub fn follow(recipe: Recipe<T>) -> Self {
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(run(recipe, sender));
        Self(receiver)
    }

    /// The value as it is now.
    pub fn get(&self) -> Option<Arc<T>> {
        self.0.borrow().clone()
    }
}

async fn run<T: Send + Sync + 'static>(recipe: Recipe<T>, sender: watch::Sender<Option<Arc<T>>>) {
    let mut directories: Vec<_> =
        recipe.files.iter().filter_map(|file| file.parent()).map(directory).collect();
    directories.sort();
    directories.dedup();
    let mut watches: Vec<_> =
        directories.into_iter().map(|directory| WatchDir::new(directory, RESYNC)).collect();
    let mut last = None;
    loop {
        watches.iter_mut().for_each(WatchDir::arm);
        let contents = read(&recipe.files).await;
        if last.as_ref() != Some(&contents) {
            attempt(&recipe, &contents, &sender);
            last = Some(contents);
        }
        let changed = futures::future::select_all(watches.iter_mut().map(|watch| Box::pin(watch.changed())));
        tokio::select! {
            _ = changed => {}
            () = sender.closed() => return,
        }
    }
}

fn attempt<T>(
    recipe: &Recipe<T>,
    contents: &Result<Vec<String>, String>,
    sender: &watch::Sender<Option<Arc<T>>>,
) {
    let made = contents.clone().and_then(|contents| (recipe.make)(&contents));
    (recipe.outcome)(made.is_ok());
    match made {
        Ok(value) => {
            let old = sender.send_replace(Some(Arc::new(value)));
            tracing::info!("{} {}", recipe.what, if old.is_some() { "updated" } else { "loaded" });
        }
        Err(problem) => {
            let kept =
                if sender.borrow().is_some() { "the old one stays in use" } else { "there is none yet" };
            tracing::error!("RM1054: {} cannot be loaded; {kept}: {problem}", recipe.what);
        }
    }
}

async fn read(files: &[PathBuf]) -> Result<Vec<String>, String> {
    let mut contents = Vec::new();
    for file in files {
        let text = tokio::fs::read_to_string(file).await;
        contents.push(text.map_err(|error| format!("{}: {error}", file.display()))?);
    }
    Ok(contents)
}

/// A bare file name has the parent ``, which is the working directory.
fn directory(parent: &Path) -> PathBuf {
    if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() }
}

/// How often the files are looked at even if the kernel tells of no change.
const RESYNC: Duration = Duration::from_secs(5);
