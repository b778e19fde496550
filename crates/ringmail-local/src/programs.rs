//! What stands for an image: `--run IMAGE=PROGRAM [ARGS…]`, and which program of this machine that is.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// The programs that stand for images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// By image, with or without tag.
    images: BTreeMap<String, Vec<String>>,
    /// Directories in which programs are looked for.
    path: Vec<PathBuf>,
}

impl Programs {
    /// Reads the values of `--run`; `path` is the machine's `PATH`.
    pub fn parse(run: &[String], path: &str) -> Result<Self, Problem> {
        let mut images = BTreeMap::new();
        for option in run {
            let bad = |what: &str| {
                Problem::new(
                    "RM1550",
                    format!("--run {option}"),
                    what,
                    "write `--run IMAGE=PROGRAM` or `--run 'IMAGE=PROGRAM ARG ARG'`",
                )
            };
            let (image, command) = option.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
            let words = words(command).ok_or_else(|| bad("a quotation mark is not closed"))?;
            if image.is_empty() || words.is_empty() {
                return Err(bad("image or program is empty"));
            }
            images.insert(image.to_owned(), words);
        }
        let path = path.split(':').filter(|d| d.starts_with('/')).map(PathBuf::from).collect();
        Ok(Self { images, path })
    }

    /// Adds the program of one of the mesh's own images.
    pub fn add(&mut self, image: &str, command: Vec<String>) {
        self.images.insert(image.to_owned(), command);
    }

    /// Adds what another set says, which wins.
    pub fn extend(&mut self, other: Self) {
        self.images.extend(other.images);
        if !other.path.is_empty() {
            self.path = other.path;
        }
    }

    /// `PATH` as a container gets it.
    pub fn path_variable(&self) -> String {
        self.path.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// Program and arguments of a container, before `$(VAR)` expansion: `command` replaces the image's program, `args` replaces
    /// its arguments.
    pub fn command(&self, container: &Container) -> Option<Vec<String>> {
        let command = container.command.as_deref().unwrap_or_default();
        let args = container.args.as_deref().unwrap_or_default();
        if !command.is_empty() {
            return Some(command.iter().chain(args).cloned().collect());
        }
        let image = self.image(container.image.as_deref().unwrap_or_default())?;
        if args.is_empty() {
            return Some(image.to_vec());
        }
        Some(image.iter().take(1).chain(args).cloned().collect())
    }

    /// Checks that a container has a program, and that this machine has it.
    pub fn check(&self, place: &str, container: &Container) -> Result<(), Problem> {
        let image = container.image.as_deref().unwrap_or_default();
        let name = &container.name;
        let Some(command) = self.command(container) else {
            let (what, example) = if image.is_empty() {
                ("has neither `command` nor `image`".to_owned(), "add `command: [PROGRAM]`".to_owned())
            } else {
                let guess = bare(image).rsplit('/').next().unwrap_or(image).to_owned();
                (
                    format!("has image `{image}` and no `command`; images are not pulled here"),
                    format!(
                        "say which program of this machine stands for it: `--run {}={guess}`, or add `command` to the \
                         container",
                        bare(image)
                    ),
                )
            };
            return Err(Problem::new("RM1551", place, format!("container `{name}` {what}"), example));
        };
        let program = command.first().map(String::as_str).unwrap_or_default();
        // A path in a volume exists in the pod only, and one with a variable is known only then.
        let in_volume =
            container.volume_mounts.iter().flatten().any(|m| Path::new(program).starts_with(&m.mount_path));
        if in_volume || program.contains("$(") || (program.contains('/') && !program.starts_with('/')) {
            return Ok(());
        }
        let missing = |what: String, cure: &str| {
            Err(Problem::new("RM1552", place, format!("container `{name}`: {what}"), cure))
        };
        let found = match self.find(program) {
            Some(found) => found,
            None if program.starts_with('/') => {
                return missing(
                    format!("program `{program}` does not exist on this machine or is not executable"),
                    "containers are programs of this machine: install it, or correct `command`",
                );
            }
            None => {
                return missing(
                    format!("program `{program}` is not in PATH ({})", self.path_variable()),
                    "containers are programs of this machine: install it, or write its whole path",
                );
            }
        };
        // Named by its path, such a program is shown to its container.
        for hidden in ["/tmp", "/run"] {
            if found.starts_with(hidden) && !program.starts_with('/') {
                return missing(
                    format!(
                        "program `{}` lies below {hidden}, which is fresh and empty in a container",
                        found.display()
                    ),
                    "name the program by its whole path, or put it elsewhere",
                );
            }
        }
        Ok(())
    }

    fn image(&self, image: &str) -> Option<&[String]> {
        let candidates = [image, without_digest(image), bare(image)];
        candidates.iter().find_map(|name| self.images.get(*name)).map(Vec::as_slice)
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        let executable = |path: &Path| {
            std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        if program.starts_with('/') {
            let path = PathBuf::from(program);
            return executable(&path).then_some(path);
        }
        self.path.iter().map(|dir| dir.join(program)).find(|path| executable(path))
    }
}

fn without_digest(image: &str) -> &str {
    image.split('@').next().unwrap_or(image)
}

/// An image without tag and digest. A colon before the last slash belongs to a registry's port.
fn bare(image: &str) -> &str {
    let image = without_digest(image);
    let name = image.rfind('/').map_or(0, |slash| slash + 1);
    image[name..].find(':').map_or(image, |colon| &image[..name + colon])
}

/// Words as a shell splits them: blanks separate, quotation marks hold together, a backslash takes the next character as it is.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        end if end == c => break,
                        '\\' if c == '"' => word.push(chars.next()?),
                        other => word.push(other),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(text: &str) -> Container {
        serde_saphyr::from_str(text).unwrap()
    }

    fn programs(run: &[&str]) -> Programs {
        let run: Vec<String> = run.iter().map(ToString::to_string).collect();
        Programs::parse(&run, "/usr/bin:/bin").unwrap()
    }

    #[test]
    fn an_image_matches_with_or_without_its_tag() {
        let programs = programs(&["nginx=/usr/sbin/nginx -g 'daemon off;'", "localhost:5000/app:v2=app"]);
        let nginx = container("{name: a, image: 'nginx:1.27@sha256:00'}");
        assert_eq!(programs.command(&nginx).unwrap(), ["/usr/sbin/nginx", "-g", "daemon off;"]);
        assert_eq!(
            programs.command(&container("{name: a, image: 'localhost:5000/app:v2'}")).unwrap(),
            ["app"]
        );
        assert_eq!(programs.command(&container("{name: a, image: 'localhost:5000/app:v3'}")), None);
    }

    #[test]
    fn command_replaces_the_program_and_args_the_arguments() {
        let programs = programs(&["x=prog default args"]);
        assert_eq!(
            programs.command(&container("{name: a, image: x, args: [one]}")).unwrap(),
            ["prog", "one"]
        );
        assert_eq!(programs.command(&container("{name: a, image: x, command: [c]}")).unwrap(), ["c"]);
        assert_eq!(
            programs.command(&container("{name: a, image: x, command: [c], args: [d]}")).unwrap(),
            ["c", "d"]
        );
    }

    #[test]
    fn an_image_without_program_says_exactly_what_to_add() {
        let problem =
            programs(&[]).check("f.yaml:3", &container("{name: web, image: 'docker.io/library/nginx:1'}"));
        assert_eq!(
            problem.unwrap_err().to_string(),
            "RM1551: f.yaml:3: container `web` has image `docker.io/library/nginx:1` and no `command`; images are not \
             pulled here\n  hint: say which program of this machine stands for it: `--run \
             docker.io/library/nginx=nginx`, or add `command` to the container"
        );
    }

    #[test]
    fn a_missing_program_is_found_before_the_start() {
        let programs = programs(&[]);
        let problem = programs.check("f", &container("{name: a, command: [no-such-program]}")).unwrap_err();
        assert_eq!(problem.code, "RM1552");
        let problem = programs.check("f", &container("{name: a, command: [/no/such/program]}")).unwrap_err();
        assert_eq!(problem.code, "RM1552");
        programs.check("f", &container("{name: a, command: [sh]}")).unwrap();
        let in_volume =
            "{name: a, command: [/scripts/run.sh], volumeMounts: [{name: v, mountPath: /scripts}]}";
        programs.check("f", &container(in_volume)).unwrap();
    }

    #[test]
    fn options_that_cannot_be_read_are_refused() {
        for bad in ["nginx", "=x", "x=", "x='y"] {
            assert_eq!(Programs::parse(&[bad.to_owned()], "").unwrap_err().code, "RM1550");
        }
    }
}
