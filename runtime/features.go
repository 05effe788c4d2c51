package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// probeLimit bounds each question to an OCI runtime.
const probeLimit = 5 * time.Second

// probeAll asks all handlers at one time.
func probeAll(ctx context.Context, handlers []Handler) []HandlerInfo {
	list := make([]HandlerInfo, len(handlers))
	var work sync.WaitGroup
	for i, h := range handlers {
		work.Go(func() { list[i] = Probe(ctx, h) })
	}
	work.Wait()
	return list
}

// Probe asks one OCI runtime what it is; it takes at most probeLimit. What is
// wrong with it is the Problem of the answer.
func Probe(ctx context.Context, h Handler) HandlerInfo {
	info := HandlerInfo{Handler: h, MountFlags: map[string]bool{}}
	path, err := exec.LookPath(h.Path)
	if err != nil {
		info.Problem = fmt.Sprintf("%s cannot be executed: %v", h.Path, err)
		return info
	}
	info.Path = path
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	bare := info.Handler
	bare.Root = "" // neither question concerns containers
	out, err := runtimeOutput(ctx, bare, "--version")
	if err != nil {
		info.Problem = fmt.Sprintf("%s --version: %v", path, err)
		return info
	}
	info.Usable = true
	name, version := parseVersion(string(out))
	info.Version = version
	info.Problem = belowFloor(name, version)
	if out, err = runtimeOutput(ctx, bare, "features"); err == nil {
		info.apply(out)
	}
	return info
}

// apply takes what `<runtime> features` printed (runtime-spec features.md).
// Old runtimes do not know the command and lack what it would tell of.
func (info *HandlerInfo) apply(out []byte) {
	var f features.Features
	if json.Unmarshal(out, &f) != nil {
		return
	}
	info.SpecMax = f.OCIVersionMax
	for _, o := range f.MountOptions {
		info.MountFlags[o] = true
	}
	info.RRO = info.MountFlags["rro"]
	info.Checkpoint = f.Annotations[checkpointAnnotation] == "true"
	if f.Linux != nil && slices.Contains(f.Linux.Namespaces, "user") {
		m := f.Linux.MountExtensions
		info.UserNS = m != nil && m.IDMap != nil && m.IDMap.Enabled != nil && *m.IDMap.Enabled
	}
}

// checkpointAnnotation is how runc and crun say that they were built with CRIU.
const checkpointAnnotation = "org.opencontainers.runc.checkpoint.enabled"

// parseVersion reads "runc version 1.5.2" or "crun version 1.8.1".
func parseVersion(out string) (name, version string) {
	first, _, _ := strings.Cut(out, "\n")
	f := strings.Fields(first)
	if len(f) >= 3 && f[1] == "version" {
		return f[0], f[2]
	}
	return "", ""
}

// floors are the lowest versions with all published security fixes, by release
// line; a line that is not listed is too old if it is below the first.
var floors = map[string][][3]int{
	"runc": {{1, 3, 6}, {1, 4, 3}, {1, 5, 0}},
	"crun": {{1, 30, 1}},
}

func belowFloor(name, version string) string {
	lines, known := floors[name]
	if !known {
		return ""
	}
	v, ok := numbers(version)
	if !ok {
		return ""
	}
	for _, floor := range lines {
		if v[0] == floor[0] && v[1] == floor[1] {
			if slices.Compare(v[:], floor[:]) < 0 {
				return tooOld(name, version, lines)
			}
			return ""
		}
	}
	if last := lines[len(lines)-1]; slices.Compare(v[:], last[:]) < 0 {
		return tooOld(name, version, lines)
	}
	return ""
}

func tooOld(name, version string, lines [][3]int) string {
	var fixed []string
	for _, l := range lines {
		fixed = append(fixed, fmt.Sprintf("%d.%d.%d", l[0], l[1], l[2]))
	}
	return fmt.Sprintf("%s %s lacks security fixes; use %s or later", name, version, strings.Join(fixed, ", "))
}

// numbers reads the first three numbers of a version; suffixes do not count.
func numbers(version string) (v [3]int, ok bool) {
	for i, part := range strings.SplitN(version, ".", 3) {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if digits >= 0 {
			part = part[:digits]
		}
		n, err := strconv.Atoi(part)
		if err != nil {
			return v, false
		}
		v[i], ok = n, i == 2
	}
	return v, ok
}
