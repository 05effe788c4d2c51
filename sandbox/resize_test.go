package sandbox

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"noded.dev/noded/internal/cgroup"
	"noded.dev/noded/internal/kind"
	"noded.dev/noded/spec"
)

// The other half of a pair of limits is what is in force.
func TestCompleteChange(t *testing.T) {
	now := cgroup.Limits{CPUQuota: 20000, CPUPeriod: 50000, MemoryLimit: 64 << 20, MemorySwap: 64 << 20}
	none := cgroup.Limits{CPUQuota: -1, CPUPeriod: 100000, MemoryLimit: cgroup.Unlimited, MemorySwap: cgroup.Unlimited}
	facts := spec.Facts{Swap: true}
	for name, c := range map[string]struct {
		asked *cri.LinuxContainerResources
		now   cgroup.Limits
		want  string // of quota, period, memory, swap; "-" is not set
		err   kind.Kind
	}{
		"nothing":                  {&cri.LinuxContainerResources{}, now, "- - - -", 0},
		"quota":                    {&cri.LinuxContainerResources{CpuQuota: 10000}, now, "10000 50000 - -", 0},
		"period":                   {&cri.LinuxContainerResources{CpuPeriod: 10000}, now, "20000 10000 - -", 0},
		"period without a quota":   {&cri.LinuxContainerResources{CpuPeriod: 10000}, none, "-1 10000 - -", 0},
		"memory":                   {&cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}, now, "- - 1048576 1048576", 0},
		"swap":                     {&cri.LinuxContainerResources{MemorySwapLimitInBytes: 65 << 20}, now, "- - 67108864 68157440", 0},
		"swap below memory":        {&cri.LinuxContainerResources{MemorySwapLimitInBytes: 63 << 20}, now, "", kind.Invalid},
		"swap without memory":      {&cri.LinuxContainerResources{MemorySwapLimitInBytes: 63 << 20}, none, "", kind.Invalid},
		"unlimited swap":           {&cri.LinuxContainerResources{MemorySwapLimitInBytes: -1}, now, "- - 67108864 -1", 0},
		"unlimited swap, no limit": {&cri.LinuxContainerResources{MemorySwapLimitInBytes: -1}, none, "- - -1 -1", 0},
	} {
		change, err := spec.Resources(c.asked, facts)
		if err != nil {
			t.Fatal(err)
		}
		err = completeChange(change, c.asked, c.now)
		if kind.Of(err) != c.err && err != nil || (err != nil) != (c.err != 0) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && changeText(change) != c.want {
			t.Errorf("%s: %q, want %q", name, changeText(change), c.want)
		}
	}
}

func changeText(r *rspec.LinuxResources) string {
	show := func(p any) string {
		if v := reflect.ValueOf(p); !v.IsNil() {
			return fmt.Sprint(v.Elem().Interface())
		}
		return "-"
	}
	cpu, memory := r.CPU, r.Memory
	if cpu == nil {
		cpu = &rspec.LinuxCPU{}
	}
	if memory == nil {
		memory = &rspec.LinuxMemory{}
	}
	return strings.Join([]string{show(cpu.Quota), show(cpu.Period), show(memory.Limit), show(memory.Swap)}, " ")
}

// An undo has what the change has, and nothing else: the runtime may be older
// than what it would be told.
func TestUndoOf(t *testing.T) {
	shares, quota, period, limit, swap := uint64(1), int64(2000), uint64(3000), int64(4), int64(5)
	now := cgroup.Limits{CPUShares: 10, CPUQuota: -1, CPUPeriod: 30, CpusetCPUs: "0-1", CpusetMems: "0", MemoryLimit: 40, MemorySwap: cgroup.Unlimited}
	undo := undoOf(&rspec.LinuxResources{CPU: &rspec.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period, Cpus: "1"}, Memory: &rspec.LinuxMemory{Limit: &limit, Swap: &swap}}, now)
	if got := changeText(undo); got != "-1 30 40 -1" || *undo.CPU.Shares != 10 || undo.CPU.Cpus != "0-1" || undo.CPU.Mems != "" {
		t.Errorf("%s, %+v", got, undo.CPU)
	}
	if undo := undoOf(&rspec.LinuxResources{}, now); undo.CPU != nil || undo.Memory != nil {
		t.Errorf("%+v", undo)
	}
}

func TestRefused(t *testing.T) {
	runc := func(text string) error { return kind.Errorf(kind.Aborted, "runc update: %s", text) }
	for name, c := range map[string]struct {
		err   error
		field string
		kind  kind.Kind
	}{
		"v1 memory in use":   {runc("unable to set memory limit to 1 (current usage: 2, peak usage: 3)"), "memory_limit_in_bytes: ", kind.Precondition},
		"v2 memory in use":   {runc("cannot set memory limit: container could not be below its usage"), "memory_limit_in_bytes: ", kind.Precondition},
		"cpuset":             {runc(`failed to write "5": write /sys/fs/cgroup/cpuset/c/cpuset.cpus: permission denied`), "cpuset_cpus: ", kind.Invalid},
		"v2 quota":           {runc("write /sys/fs/cgroup/c/cpu.max: invalid argument"), "cpu_quota: ", kind.Invalid},
		"no controller":      {runc("open /sys/fs/cgroup/c/cpuset.mems: no such file or directory"), "cpuset_mems: ", kind.Precondition},
		"huge pages in use":  {&cgroup.SettingError{Setting: cgroup.Setting{File: "hugetlb.2MB.max", Value: "0"}, Err: unix.EBUSY}, "hugepage_limits: ", kind.Precondition},
		"first of several":   {errors.Join(&cgroup.SettingError{Setting: cgroup.Setting{File: "memory.limit_in_bytes"}, Err: unix.EBUSY}, &cgroup.SettingError{Setting: cgroup.Setting{File: "memory.memsw.limit_in_bytes"}, Err: unix.EINVAL}), "memory_limit_in_bytes: ", kind.Precondition},
		"unified":            {runc("write /sys/fs/cgroup/c/memory.high: invalid argument"), "unified memory.high: ", kind.Invalid},
		"unified over field": {runc("write /sys/fs/cgroup/c/io.max: no such device"), "unified io.max: ", kind.Precondition},
		"something else":     {runc("container is on fire"), "runc update: ", kind.Aborted},
		"deadline":           {kind.Errorf(kind.Deadline, "update: cpu.max did not answer"), "cpu_quota: ", kind.Deadline},
		"nobody there":       {context.Canceled, "context canceled", kind.Canceled},
	} {
		err := refused(c.err, "memory.high", "io.max")
		if !strings.HasPrefix(err.Error(), c.field) || kind.Of(err) != c.kind || !errors.Is(err, c.err) {
			t.Errorf("%s: %v of kind %d", name, err, kind.Of(err))
		}
	}
	if refused(nil) != nil {
		t.Error("nothing was refused")
	}
}

func TestInForce(t *testing.T) {
	none := cgroup.Limits{CPUShares: 1024, CPUQuota: -1, CPUPeriod: 100000, MemoryLimit: cgroup.Unlimited, MemorySwap: cgroup.Unlimited}
	for name, c := range map[string]struct {
		asked  *cri.LinuxContainerResources
		limits cgroup.Limits
		want   *cri.LinuxContainerResources
	}{
		"nothing asked for": {nil, none, &cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000}},
		"no limits asked for": {&cri.LinuxContainerResources{CpuQuota: -1, MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}, none,
			&cri.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100000, CpuQuota: -1, MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		"rounded": {&cri.LinuxContainerResources{MemoryLimitInBytes: 5000, CpuShares: 102},
			cgroup.Limits{CPUWeight: cgroup.WeightOf(102), CPUShares: 99, CPUQuota: 5, CPUPeriod: 9, MemoryLimit: 4096, MemorySwap: 4096, CpusetCPUs: "0-1", CpusetMems: "0", HugePages: map[string]uint64{"2MB": 2, "1GB": 1}},
			&cri.LinuxContainerResources{CpuShares: 102, CpuQuota: 5, CpuPeriod: 9, MemoryLimitInBytes: 4096, MemorySwapLimitInBytes: 4096, CpusetCpus: "0-1", CpusetMems: "0",
				HugepageLimits: []*cri.HugepageLimit{{PageSize: "1GB", Limit: 1}, {PageSize: "2MB", Limit: 2}}}},
	} {
		if got := inForce(c.asked, c.limits); !proto.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestPodSum(t *testing.T) {
	facts := spec.Facts{Swap: true}
	for name, c := range map[string]struct {
		r    podResources
		want cgroup.Wanted
	}{
		"nothing":                       {podResources{}, cgroup.Wanted{}},
		"overhead alone limits nothing": {podResources{overhead: &cri.LinuxContainerResources{MemoryLimitInBytes: 1, CpuQuota: 2000, CpuShares: 3}}, cgroup.Wanted{}},
		"both": {podResources{&cri.LinuxContainerResources{MemoryLimitInBytes: 1, CpuQuota: 5000, CpuPeriod: 50000, CpuShares: 3, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}}},
			&cri.LinuxContainerResources{MemoryLimitInBytes: 10, CpuQuota: 20000, CpuShares: 30, CpusetCpus: "0", HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4}}}},
			cgroup.Wanted{MemoryLimit: 11, MemorySwap: 11, CPUQuota: 30000, CPUShares: 33, CpusetCPUs: "0", HugePages: map[string]uint64{"2MB": 5}}},
		"no limits": {podResources{&cri.LinuxContainerResources{MemoryLimitInBytes: 1, CpuQuota: 5000}, &cri.LinuxContainerResources{MemoryLimitInBytes: -1, CpuQuota: -1, MemorySwapLimitInBytes: -1}},
			cgroup.Wanted{MemoryLimit: -1, MemorySwap: -1, CPUQuota: -1}},
		"swap": {podResources{&cri.LinuxContainerResources{MemoryLimitInBytes: 1}, &cri.LinuxContainerResources{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 20}}, cgroup.Wanted{MemoryLimit: 11, MemorySwap: 21}},
	} {
		got := c.r.sum(facts)
		if c.want.HugePages == nil {
			c.want.HugePages = map[string]uint64{}
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
