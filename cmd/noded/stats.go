package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func statsCommand(a *app) *cobra.Command {
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show what the running containers use",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client) error { return a.stats(cmd.Context(), c, every) })
		},
	}
	cmd.Flags().DurationVarP(&every, "watch", "w", 0, "print again after this time, until interrupted")
	return cmd
}

// sample is the time between two looks at the CPU counters.
const sample = time.Second

func (a *app) stats(ctx context.Context, c *client, every time.Duration) error {
	for {
		before, err := c.listContainerStats(ctx)
		if err != nil {
			return err
		}
		if a.format == "json" {
			if err := printJSON(a.out, before); err != nil {
				return err
			}
		} else if err := a.statsTable(ctx, c, before); err != nil {
			return err
		}
		if every == 0 {
			return nil
		}
		if !pause(ctx, every) {
			return nil
		}
	}
}

// pause waits; false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// statsTable takes a second sample: a rate needs two.
func (a *app) statsTable(ctx context.Context, c *client, before []*cri.ContainerStats) error {
	if !pause(ctx, sample) {
		return nil
	}
	after, err := c.listContainerStats(ctx)
	if err != nil {
		return err
	}
	pods, err := c.podNames(ctx)
	if err != nil {
		return err
	}
	containers, err := c.listContainers(ctx, nil)
	if err != nil {
		return err
	}
	podOf := map[string]string{}
	for _, ctr := range containers {
		podOf[ctr.GetId()] = pods[ctr.GetPodSandboxId()]
	}
	first := map[string]*cri.CpuUsage{}
	for _, s := range before {
		first[s.GetAttributes().GetId()] = s.GetCpu()
	}
	slices.SortFunc(after, func(x, y *cri.ContainerStats) int {
		return cmp.Compare(y.GetMemory().GetWorkingSetBytes().GetValue(), x.GetMemory().GetWorkingSetBytes().GetValue())
	})
	rows := [][]string{{"CONTAINER", "NAME", "POD", "CPU", "MEMORY", "DISK", "INODES"}}
	for _, s := range after {
		id := s.GetAttributes().GetId()
		rows = append(rows, []string{
			shortID(id), printable(s.GetAttributes().GetMetadata().GetName()), printable(orDash(podOf[id])),
			cpuPercent(first[id], s.GetCpu()),
			bytesText(s.GetMemory().GetWorkingSetBytes().GetValue()),
			bytesText(s.GetWritableLayer().GetUsedBytes().GetValue()),
			fmt.Sprint(s.GetWritableLayer().GetInodesUsed().GetValue()),
		})
	}
	return table(a.out, rows)
}

// cpuPercent is the use of one CPU between two samples.
func cpuPercent(before, after *cri.CpuUsage) string {
	elapsed := after.GetTimestamp() - before.GetTimestamp()
	used := int64(after.GetUsageCoreNanoSeconds().GetValue()) - int64(before.GetUsageCoreNanoSeconds().GetValue())
	if before == nil || elapsed <= 0 || used < 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(used)/float64(elapsed))
}
