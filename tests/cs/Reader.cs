// Reads events as RealTimeKql's public reader does (microsoft/KqlTools, branch naprakas/AddEbpfInput): loads the
// library as "event", calls setupBPF with a char[] on a thread, waits three seconds, then calls DequeuePerfEvent on
// another; no AddProbe, getStatus or cleanup, and the process ends while both threads are in the library. There Ctrl-C
// ends it, by Environment.Exit. Here a file does, as Mono reports Ctrl-C only with a terminal; and exit(3), as Mono's
// Environment.Exit waits for ever while a thread is in any foreign call that signals do not end (pthread_mutex_lock
// does as well). Prints the columns of tcp_table --tsv.

using System;
using System.IO;
using System.Runtime.InteropServices;
using System.Threading;

[StructLayout(LayoutKind.Sequential, Pack = 1, CharSet = CharSet.Ansi)]
struct TcpEvent
{
    public ulong EventTime;
    public uint pid;
    public uint UserId;
    public ulong rx_b;
    public ulong tx_b;
    public uint SentPkts;
    public uint RecvPkts;
    public ushort Type;
    public ushort SPT;
    public ushort DPT;
    [MarshalAs(UnmanagedType.ByValTStr, SizeConst = 128)] public string Command;
    [MarshalAs(UnmanagedType.ByValTStr, SizeConst = 128)] public string SADDR;
    [MarshalAs(UnmanagedType.ByValTStr, SizeConst = 128)] public string DADDR;
}

static class Reader
{
    [DllImport("event")] static extern int setupBPF(char[] program);
    [DllImport("event")] static extern TcpEvent DequeuePerfEvent();
    [DllImport("libc")] static extern void exit(int status);

    // The library looks for these words to recognise the stock program.
    const string Program = "int kprobe__tcp_set_state(struct pt_regs *ctx) { return 0; } /* tcpEvents */";

    static void Dequeue()
    {
        for (;;)
        {
            TcpEvent e = DequeuePerfEvent();

            Console.WriteLine(string.Join("\t", e.EventTime, e.pid, e.UserId, e.rx_b, e.tx_b, e.SentPkts, e.RecvPkts, e.Type,
                e.SPT, e.DPT, e.Command, e.SADDR, e.DADDR));
        }
    }

    static void Main(string[] arguments)
    {
        new Thread(() => setupBPF(Program.ToCharArray())).Start();
        Thread.Sleep(3000);
        new Thread(Dequeue).Start();
        while (!File.Exists(arguments[0]))
            Thread.Sleep(10);
        exit(0);
    }
}
