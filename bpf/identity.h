/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Who the current process is, as the consumer knows it: by IDs of its own PID namespace. Part of tcp_event.bpf.c.
 */
#ifndef TCPEVENT_IDENTITY_H
#define TCPEVENT_IDENTITY_H

#include "cast.h"
#include "process.h"

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

/*
 * Who the current process is. Calls as few helpers as can be: with the usual mitigations a call costs more than all that it
 * does. Where there is a typed pointer to it, `task` is that one.
 */
static __always_inline void read_current(struct task_struct *task, __u32 *pid, __u32 *uid, char *comm)
{
	if (!has_typed_task) {
		read_current_by_helpers(pid, uid, comm);
		*pid = current_process_id();
		return;
	}
	/* Not by the typed pointer: see FIELD. */
	*uid = can_cast ? CAST(task_struct, task)->cred->uid.val : (__u32)bpf_get_current_uid_gid();
	*pid = pid_namespace ? id_in_namespace(task) : (__u32)task->tgid;
	*(__u64 *)comm = *(__u64 *)task->comm;
	*(__u64 *)(comm + 8) = *(__u64 *)(task->comm + 8);
}

#endif
