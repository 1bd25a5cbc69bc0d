// Watch.cs - prints each event of the classic functions, by P/Invoke, until Ctrl-C.
using System;
using System.Runtime.InteropServices;
using System.Threading;

[StructLayout(LayoutKind.Sequential, Pack = 1)]
unsafe struct TcpEvent // 430 bytes
{
    public ulong EventTime;
    public uint pid;
    public uint UserId;
    public ulong rx_b;
    public ulong tx_b;
    public uint tcpi_segs_out;
    public uint tcpi_segs_in;
    public ushort family;
    public ushort SPT;
    public ushort DPT;
    public fixed byte task[128];
    public fixed byte SADDR[128];
    public fixed byte DADDR[128];
}

static unsafe class Watch
{
    // The runtime looks for libtcpEvent.so.
    [DllImport("tcpEvent")] static extern void AddProbe(string program);
    [DllImport("tcpEvent")] static extern uint getStatus();
    [DllImport("tcpEvent")] static extern TcpEvent DequeuePerfEvent();

    // A process chooses its own name: escape sequences must not reach the terminal.
    static string Text(byte* field)
    {
        var text = new System.Text.StringBuilder();

        for (; *field != 0; field++)
            text.Append(*field < ' ' || *field > '~' || *field == '\\' ? $"\\x{*field:x2}" : ((char)*field).ToString());
        return text.ToString();
    }

    static void Main()
    {
        AddProbe(null);
        while (getStatus() == 0)
            Thread.Sleep(10);
        for (;;)
        {
            TcpEvent e = DequeuePerfEvent();
            var time = DateTimeOffset.FromUnixTimeMilliseconds((long)(e.EventTime / 1000000));

            Console.WriteLine($"{time:HH:mm:ss.fff} {Text(e.task)}[{e.pid}] {Text(e.SADDR)}:{e.SPT} -> " +
                $"{Text(e.DADDR)}:{e.DPT}  received {e.rx_b}, sent {e.tx_b}");
        }
    }
}
