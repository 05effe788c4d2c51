package spec

import (
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"noded.dev/noded/internal/kind"
)

// applyProcess sets command line, working directory and terminal.
func applyProcess(in *Input, s *rspec.Spec) error {
	args, err := commandLine(in)
	if err != nil {
		return err
	}
	cwd, err := workingDir(in)
	if err != nil {
		return err
	}
	s.Process.Args = args
	s.Process.Cwd = cwd
	s.Process.Terminal = in.Container.GetTty()
	return nil
}

// commandLine combines request and image as the kubelet expects: a command
// replaces the entrypoint and drops the image's arguments; arguments alone
// replace the image's.
func commandLine(in *Input) ([]string, error) {
	command, args := in.Container.GetCommand(), in.Container.GetArgs()
	if len(command) == 0 {
		command = in.Image.Entrypoint
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	line := append(append([]string{}, command...), args...)
	if len(line) == 0 {
		return nil, kind.Errorf(kind.Invalid, "no command: neither the request nor image %q names one", clip(in.ImageName))
	}
	if line[0] == "" {
		return nil, kind.Errorf(kind.Invalid, "the command is an empty string")
	}
	for i, a := range line {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, kind.Errorf(kind.Invalid, "argument %d has a NUL byte", i)
		}
		if !utf8.ValidString(a) {
			return nil, kind.Errorf(kind.Invalid, "argument %d is not valid UTF-8", i)
		}
	}
	return line, nil
}

// procOfProcess matches paths that lead through another process's or a leaked
// descriptor's view of the file system, out of the container's root.
var procOfProcess = regexp.MustCompile(`^/proc/(self|thread-self|[0-9]+)(/|$)`)

// workingDir is the request's, else the image's, else "/". An image's relative
// one starts at the root, where image builders mean it to.
func workingDir(in *Input) (string, error) {
	dir := in.Container.GetWorkingDir()
	if dir != "" && !path.IsAbs(dir) {
		return "", kind.Errorf(kind.Invalid, "working directory %q is not absolute", clip(dir))
	}
	if dir == "" {
		dir = in.Image.WorkingDir
	}
	if err := checkText("working directory", dir, maxPath); err != nil {
		return "", err
	}
	dir = path.Clean("/" + dir)
	if procOfProcess.MatchString(dir) {
		return "", kind.Errorf(kind.Invalid, "working directory %q is a process's own folder", dir)
	}
	return dir, nil
}

// checkArgumentSize refuses what execve(2) would refuse with E2BIG, whose
// message does not say what is too long.
func checkArgumentSize(_ *Input, s *rspec.Spec) error {
	const pointer = 8
	total := 0
	for what, list := range map[string][]string{"argument": s.Process.Args, "environment variable": s.Process.Env} {
		for _, v := range list {
			if len(v) > maxArgString {
				return tooLong(what, len(v), maxArgString)
			}
			total += len(v) + 1 + pointer
		}
	}
	if total > maxArgBytes {
		return tooLong("arguments and environment", total, maxArgBytes)
	}
	return nil
}

// applyUser sets the resolved identity.
func applyUser(in *Input, s *rspec.Spec) error {
	if in.User.UID > maxID || in.User.GID > maxID {
		return kind.Errorf(kind.Invalid, "user %d:%d is above %d", in.User.UID, in.User.GID, maxID)
	}
	s.Process.User = rspec.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.AdditionalGIDs}
	return nil
}

// applyRlimits sets the node's defaults. A limit above noded's own hard limit
// would make the runtime fail with EPERM where CAP_SYS_RESOURCE is missing.
func applyRlimits(in *Input, s *rspec.Spec) error {
	for _, l := range in.Rlimits {
		for _, own := range in.Facts.Rlimits {
			if own.Type == l.Type {
				l.Hard = min(l.Hard, own.Hard)
			}
		}
		l.Soft = min(l.Soft, l.Hard)
		s.Process.Rlimits = append(s.Process.Rlimits, l)
	}
	return nil
}

// applyOOMScore always writes the score: left out, a container would inherit
// that of the shim, the least killable process of the node.
func applyOOMScore(in *Input, s *rspec.Spec) error {
	score := max(wantedOOMScore(in), in.Facts.OOMScoreFloor)
	s.Process.OOMScoreAdj = &score
	return nil
}

func wantedOOMScore(in *Input) int {
	return int(in.Container.GetLinux().GetResources().GetOomScoreAdj())
}

func oomScoreWarning(in *Input) string {
	if wantedOOMScore(in) >= in.Facts.OOMScoreFloor {
		return ""
	}
	return "oom_score_adj cannot be lowered without CAP_SYS_RESOURCE; the lowest that noded may set is used"
}
