/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Process IDs as the consumer knows them: those of its own PID namespace. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_PID_NAMESPACE_H
#define TCPEVENT_PID_NAMESPACE_H

/* The inode number of the consumer's PID namespace; 0: the initial one, whose IDs the kernel has at hand. */
const volatile __u32 pid_namespace = 0;

/* include/linux/pid_namespace.h */
#define MAX_PID_NS_LEVEL 32

/*
 * The ID of a task's process; 0 where the consumer cannot see it. A process has one in its own namespace, and in each that
 * this one is in, from the initial one on.
 */
static __noinline __u32 id_in_namespace(struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct task_struct___with_links *linked = (void *)leader;
	struct pid *pid;
	__u32 level, deepest;

	/* Before Linux 4.19 (commit 2c4704756cab): a list of links, of which the first is the process's own. */
	if (bpf_core_field_exists(leader->thread_pid))
		pid = BPF_CORE_READ(leader, thread_pid);
	else
		pid = BPF_CORE_READ(linked, pids[0].pid);
	if (!pid)
		return 0;
	deepest = BPF_CORE_READ(pid, level);
	for (level = 1; level <= MAX_PID_NS_LEVEL && level <= deepest; level++) {
		struct upid *id = (void *)pid + bpf_core_field_offset(pid->numbers) +
				  level * bpf_core_type_size(struct upid);

		if (BPF_CORE_READ(id, ns, ns.inum) == pid_namespace)
			return BPF_CORE_READ(id, nr);
	}
	return 0;
}

/* Of the current process; 0 where the consumer cannot see it. */
static __always_inline __u32 current_process_id(void)
{
	if (pid_namespace)
		return id_in_namespace((struct task_struct *)bpf_get_current_task());
	return bpf_get_current_pid_tgid() >> 32;
}

#endif
