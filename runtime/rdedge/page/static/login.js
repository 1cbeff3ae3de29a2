// Sends the token in a header, so that it stands in no address and no history; the answer is a cookie.

document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = document.getElementById("answer");
  const token = document.getElementById("token").value;
  try {
    const response = await fetch("/login", { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
    if (response.ok) location.replace("/");
    else answer.textContent = response.status === 401 ? "That is not the token." : `The line answers ${response.status}.`;
  } catch {
    answer.textContent = "No connection to the line, or the token has characters other than ASCII.";
  }
});
